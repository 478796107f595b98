// What the codes of kvquant stand for: 2^b levels on [−1, 1], where the values of a channel or token are laid by its range without
// outliers.
#pragma once

#include <ATen/core/Tensor.h>
#include <string>

namespace keepsight {

// Evenly spaced, −1 … 1: [2^bits] fp32, ascending, like all levels.
at::Tensor uniformLevels(int bits);
// Quantiles of a normal distribution, −1, 0 and 1 among them (QLoRA, arXiv:2305.14314); at 4 bits the NF4 table.
at::Tensor normalFloatLevels(int bits);
// 1-D k-means of x (any shape, fp32): Lloyd's steps from the uniform levels, at most 50, so that the squared error is never above theirs.
// Of more than 2^20 values an even share is taken. Equal input gives equal levels.
at::Tensor nuqLevels(const at::Tensor& x, int bits);

at::Tensor levelBounds(const at::Tensor& levels);                     // [2^bits − 1]: halfway between neighbours
at::Tensor levelCodes(const at::Tensor& x, const at::Tensor& bounds); // nearest level of each x (the lower one at a bound), uint8
// Q-Norm: the levels stretched and moved so that x, coded, gets back its mean and standard deviation.
at::Tensor matchMoments(const at::Tensor& levels, const at::Tensor& x);

} // namespace keepsight
