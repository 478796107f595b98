#include "app/gui/settings.h"

#include <QCoreApplication>
#include <QDir>
#include <QFileInfo>
#include <QStandardPaths>

#include <csignal>

namespace keepsight {

void Settings::add(const QString& key, const QString& path, int most) {
    QStringList list = m_settings.value(key).toStringList();
    list.removeAll(path);
    list.prepend(path);
    m_settings.setValue(key, QStringList(list.mid(0, most)));
}

void Settings::forgetSession(const QString& path) {
    QStringList list = recentSessions();
    list.removeAll(path);
    m_settings.setValue("recent/sessions", list);
}

Theme Settings::theme() const {
    const QString name = m_settings.value("theme").toString();
    return name == "light" ? Theme::light : name == "dark" ? Theme::dark : Theme::system;
}

void Settings::setTheme(Theme theme) {
    m_settings.setValue("theme", theme == Theme::light ? "light" : theme == Theme::dark ? "dark" : "system");
}

Settings::Layout Settings::layout() const {
    if (m_settings.value("layout/version").toInt() != LayoutVersion) return {};
    return {m_settings.value("layout/geometry").toByteArray(), m_settings.value("layout/outer").toByteArray(),
            m_settings.value("layout/inner").toByteArray()};
}

void Settings::setLayout(const Layout& layout) {
    m_settings.setValue("layout/version", LayoutVersion);
    m_settings.setValue("layout/geometry", layout.geometry);
    m_settings.setValue("layout/outer", layout.outer);
    m_settings.setValue("layout/inner", layout.inner);
}

void Settings::setFigure(double width, const QString& format) {
    m_settings.setValue("export/width", width);
    m_settings.setValue("export/format", format);
}

QString defaultModelPath() {
    const QString named = qEnvironmentVariable("KEEPSIGHT_MODEL");
    if (!named.isEmpty()) return named;
    const QDir besides(QCoreApplication::applicationDirPath());
    for (const char* folder : {"../models", "models", "../../models", "../share/keepsight/models"}) {
        const QDir dir(besides.filePath(folder));
        const auto found = dir.entryInfoList({"*.gguf"}, QDir::Files, QDir::Name);
        if (!found.isEmpty()) return found.first().canonicalFilePath();
    }
    return {};
}

static QDir recoveryFolder() {
    QDir dir(QStandardPaths::writableLocation(QStandardPaths::AppLocalDataLocation) + "/recovery");
    dir.mkpath(".");
    return dir;
}

QString ownRecoveryFile() { return recoveryFolder().filePath(QString("run-%1.keep").arg(QCoreApplication::applicationPid())); }

QStringList leftRecoveryFiles() {
    QStringList left;
    const auto files = recoveryFolder().entryInfoList({"run-*.keep"}, QDir::Files, QDir::Time); // newest first
    for (const auto& file : files) {
        const qint64 pid = file.completeBaseName().mid(4).toLongLong();
        const bool alive = pid > 0 && (::kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM);
        if (!alive) left << file.absoluteFilePath();
    }
    return left;
}

} // namespace keepsight
