// What the window remembers between starts. Everything goes through here, so that tests can point it elsewhere.
#pragma once

#include <QByteArray>
#include <QSettings>
#include <QStringList>

namespace keepsight {

enum class Theme { system, light, dark };

class Settings {
public:
    static constexpr int LayoutVersion = 1; // raised when docks come, go or are renamed: an older layout is dropped, not restored

    QStringList recentModels() const { return m_settings.value("recent/models").toStringList(); }
    QStringList recentSessions() const { return m_settings.value("recent/sessions").toStringList(); }
    void addRecentModel(const QString& path) { add("recent/models", path, 8); }
    void addRecentSession(const QString& path) { add("recent/sessions", path, 10); }
    void forgetSession(const QString& path);

    Theme theme() const;
    void setTheme(Theme theme);

    struct Layout {
        QByteArray geometry, outer, inner;
    };
    Layout layout() const; // empty if none or of another version
    void setLayout(const Layout& layout);

    QString lastFolder() const { return m_settings.value("lastFolder").toString(); }
    void setLastFolder(const QString& path) { m_settings.setValue("lastFolder", path); }
    double figureWidth() const { return m_settings.value("export/width", 3.25).toDouble(); }
    QString figureFormat() const { return m_settings.value("export/format", "pdf").toString(); }
    void setFigure(double width, const QString& format);

private:
    void add(const QString& key, const QString& path, int most);
    QSettings m_settings;
};

// The model that set-up installed, if it is there: KEEPSIGHT_MODEL, then build/models beside the program.
QString defaultModelPath();
// Recordings of this program's runs: own path, and those whose program is gone.
QString ownRecoveryFile();
QStringList leftRecoveryFiles();

} // namespace keepsight
