#include "app/gui/theme.h"

#include <QApplication>
#include <QFile>
#include <QPainter>
#include <QStyle>
#include <QStyleFactory>
#include <QSvgRenderer>

// Outside any namespace: the macro declares the function that rcc made.
static void loadResources() {
    Q_INIT_RESOURCE(app);
    Q_INIT_RESOURCE(samples);
}

namespace keepsight {

void initResources() { loadResources(); }

namespace {

QPalette s_system;
bool s_dark = false;

QPalette palette(bool dark) {
    QPalette p;
    const auto set = [&](QPalette::ColorRole role, const char* onLight, const char* onDark) { p.setColor(role, QColor(dark ? onDark : onLight)); };
    set(QPalette::Window, "#f5f7f9", "#282c32");
    set(QPalette::WindowText, "#1c2128", "#e3e7ec");
    set(QPalette::Base, "#ffffff", "#1a1d21");
    set(QPalette::AlternateBase, "#f2f5f8", "#202429");
    set(QPalette::Text, "#1c2128", "#e3e7ec");
    set(QPalette::PlaceholderText, "#737c88", "#8b95a1");
    set(QPalette::Button, "#ffffff", "#3a4048");
    set(QPalette::ButtonText, "#1c2128", "#e3e7ec");
    set(QPalette::BrightText, "#ffffff", "#ffffff");
    set(QPalette::Highlight, "#1f6bb0", "#2f7fc8");
    set(QPalette::HighlightedText, "#ffffff", "#ffffff");
    set(QPalette::Link, "#1f6bb0", "#62b0f0");
    set(QPalette::ToolTipBase, "#ffffff", "#2a2f36");
    set(QPalette::ToolTipText, "#1c2128", "#e3e7ec");
    set(QPalette::Light, "#ffffff", "#3a414a");
    set(QPalette::Midlight, "#e9edf1", "#343a42");
    set(QPalette::Mid, "#c5ccd4", "#4a525c");
    set(QPalette::Dark, "#9aa3ad", "#0f1114");
    set(QPalette::Shadow, "#6d7680", "#000000");
    for (const auto role : {QPalette::WindowText, QPalette::Text, QPalette::ButtonText})
        p.setColor(QPalette::Disabled, role, QColor(dark ? "#6d7680" : "#9aa3ad"));
    p.setColor(QPalette::Disabled, QPalette::Highlight, QColor(dark ? "#3a414a" : "#c5ccd4"));
    return p;
}

QString sheet(bool dark) {
    const QString line = dark ? "#454c56" : "#ccd3da", head = dark ? "#343a42" : "#e9edf1", primary = dark ? "#2f7fc8" : "#2a6fb0";
    return QString(R"(
        QMainWindow::separator { width: 5px; height: 5px; background: transparent; }
        QDockWidget { font-weight: 600; titlebar-close-icon: none; }
        QDockWidget::title { background: %2; border: 1px solid %1; padding: 4px 8px; text-align: left; }
        QDockWidget > QWidget { font-weight: 400; }
        QToolBar { border: none; padding: 4px 6px; spacing: 6px; }
        QToolBar QToolButton { border: 1px solid %1; border-radius: 4px; padding: 4px 12px; background: palette(button); }
        QToolBar QToolButton:hover { border-color: %3; }
        QToolBar QToolButton:pressed, QToolBar QToolButton:checked { background: %2; }
        QToolBar QToolButton#primary { background: %3; color: white; border-color: %3; font-weight: 600; }
        QToolBar QToolButton#primary:hover { background: %4; }
        QToolBar QToolButton:disabled { color: palette(placeholder-text); background: transparent; }
        QToolBar QToolButton#primary:disabled { background: %2; border-color: %1; color: palette(placeholder-text); }
        QProgressBar { border: none; border-radius: 3px; background: %1; max-height: 7px; min-height: 7px; }
        QProgressBar::chunk { border-radius: 3px; background: %3; }
        QFrame#messageBar { border: 1px solid %3; border-radius: 4px; background: %5; }
        QFrame#messageBar[error="true"] { border-color: %6; background: %7; }
        QFrame#viewFrame { border: 1px solid %1; border-top: none; background: palette(base); }
        QLabel[role="heading"] { font-weight: 600; }
        QLabel[role="quiet"] { color: palette(placeholder-text); }
        QCheckBox { spacing: 5px; margin-right: 3px; }
        QCheckBox::indicator { width: 13px; height: 13px; }
        QCheckBox::indicator:unchecked { border: 1px solid %8; border-radius: 2px; background: palette(base); }
        QCheckBox::indicator:checked { image: url(:/icons/check.svg); width: 15px; height: 15px; }
        QCheckBox::indicator:disabled { border-color: %1; }
        QDialog#commandPalette { border: 1px solid %1; }
        QTabBar { background: transparent; }
        QTabBar::tab { background: transparent; border: 1px solid transparent; border-bottom: 1px solid %1; padding: 4px 14px; color: palette(placeholder-text); }
        QTabBar::tab:hover { color: palette(text); }
        QTabBar::tab:selected { background: %2; border-color: %1; color: palette(text); font-weight: 600; }
    )")
        .arg(line, head, primary, dark ? "#3d8ed8" : "#3b7fc0", dark ? "#1b2a38" : "#eaf2fa", dark ? "#e06a4a" : "#c24e14", dark ? "#3a211b" : "#fdeee8", dark ? "#8b95a1" : "#8a939d");
}

} // namespace

void rememberSystemPalette() { s_system = QApplication::palette(); }

void applyTheme(Theme theme) {
    const bool systemDark = s_system.color(QPalette::Window).lightness() < s_system.color(QPalette::WindowText).lightness();
    s_dark = theme == Theme::dark || (theme == Theme::system && systemDark);
    if (QApplication::style()->name() != "fusion") QApplication::setStyle(QStyleFactory::create("Fusion"));
    QApplication::setPalette(palette(s_dark));
    qApp->setStyleSheet(sheet(s_dark));
}

bool isDarkTheme() { return s_dark; }

QIcon themedIcon(const QString& name) {
    QFile file(":/icons/" + name + ".svg");
    if (!file.open(QIODevice::ReadOnly)) return {};
    const QByteArray source = file.readAll();
    QIcon icon;
    const auto draw = [&](const QColor& color, QIcon::Mode mode) {
        QByteArray coloured = source;
        coloured.replace("#000000", color.name().toLatin1());
        QSvgRenderer renderer(coloured);
        for (const int size : {16, 24, 32, 48}) {
            QPixmap pixmap(size, size);
            pixmap.fill(Qt::transparent);
            QPainter painter(&pixmap);
            renderer.render(&painter);
            icon.addPixmap(pixmap, mode);
        }
    };
    const QPalette p = QApplication::palette();
    const bool onPrimary = name.endsWith("-primary");
    draw(onPrimary ? QColor(Qt::white) : p.color(QPalette::ButtonText), QIcon::Normal);
    draw(p.color(QPalette::Disabled, QPalette::ButtonText), QIcon::Disabled);
    return icon;
}

} // namespace keepsight
