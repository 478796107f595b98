// Light and dark: two palettes over Fusion, one small style sheet, and icons in the text's colour.
#pragma once

#include "app/gui/settings.h"

#include <QIcon>
#include <QPalette>

namespace keepsight {

void initResources();                 // icons and texts live in a static library, which must be asked for them
void rememberSystemPalette();         // once, before the first applyTheme()
void applyTheme(Theme theme);         // system: as dark as the palette the platform came with
bool isDarkTheme();
QIcon themedIcon(const QString& name); // resources/icons/name.svg, drawn in the palette's text colour (white on a primary button)

} // namespace keepsight
