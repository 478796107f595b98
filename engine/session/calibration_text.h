// The text that quantizers learn from where none is named: resources/texts/harbour_long.txt, built in.
#pragma once

#include <string_view>

namespace keepsight {

std::string_view shippedCalibrationText();

} // namespace keepsight
