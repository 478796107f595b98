// What a quantizer learns from before it runs: keys before RoPE and values of a text.
#pragma once

#include "engine/cache/quantizer.h"
#include "engine/model/model.h"
#include "engine/tokenizer/tokenizer.h"

namespace keepsight {

// file: UTF-8 text; empty: the shipped one. At most 2048 of its tokens. Throws EngineError, Cancelled.
CalibrationSample calibrationSample(const Model& model, const Tokenizer& tokenizer, const std::string& file, std::stop_token stop);

} // namespace keepsight
