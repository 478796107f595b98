// The next token from logits: greedy, or temperature and nucleus sampling with a counter-based generator.
#pragma once

#include "engine/data/ids.h"
#include "engine/data/job.h"

#include <span>

namespace keepsight {

// Largest logit; ties: the smaller id. NaN never wins.
TokenId argmaxToken(std::span<const float> logits);

// draw: index of this draw in the sequence; the same (seed, draw, logits) give the same token everywhere.
// topP (nucleus sampling, arXiv:1904.09751): the smallest set of likeliest tokens whose probability reaches topP.
TokenId sampleToken(std::span<const float> logits, const SamplerSpec& spec, std::uint64_t seed, std::uint64_t draw);

double negativeLogLikelihood(std::span<const float> logits, TokenId token); // nats; fp64 sums

} // namespace keepsight
