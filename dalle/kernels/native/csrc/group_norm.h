// GroupNorm over channels_last images, optionally followed by SiLU (swish), with gradients; each reads its input twice.
//
// B images, P pixels, C channels in G groups. PyTorch's own kernel for channels_last is slow, and its kernel for the
// contiguous layout needs two copies.

#pragma once

#include <omp.h>

#include <vector>

#include "simd.h"

namespace {

constexpr int64_t BLOCK_PIXELS = 64;  // summed in float32 before they are added to a double

template <class X>
struct GroupNorm {
    const X* x;                  // [B, P, C]
    const float *weight, *bias;  // [C]
    float *mean, *inverse_std;   // [B, G], saved for the backward pass
    int64_t images, pixels, channels, groups;
    float epsilon;
    bool swish;

    // Sums over the pixels, per channel, of the two vectors that `values` computes for each pixel: [2, C].
    template <class F>
    void sums(int64_t image, int threads, double* total, F values) const {
        std::vector<double> partial(threads * 2 * channels);
#pragma omp parallel num_threads(threads)
        {
            std::vector<double> own(2 * channels);
            std::vector<float> block_sums(2 * channels);
#pragma omp for schedule(static)
            for (int64_t block = 0; block < (pixels + BLOCK_PIXELS - 1) / BLOCK_PIXELS; block++) {
                std::fill(block_sums.begin(), block_sums.end(), 0.0f);
                for (int64_t pixel = block * BLOCK_PIXELS; pixel < std::min(pixels, (block + 1) * BLOCK_PIXELS);
                     pixel++)
                    for (int64_t c = 0; c < channels; c += LANES) {
                        Floats one, other;
                        values((image * pixels + pixel) * channels + c, c, one, other);
                        store(&block_sums[c], load(&block_sums[c]) + one);
                        store(&block_sums[channels + c], load(&block_sums[channels + c]) + other);
                    }
                for (int64_t i = 0; i < 2 * channels; i++) own[i] += block_sums[i];
            }
            // Kept apart by thread and added in a fixed order, so that the sum is reproducible
            std::copy(own.begin(), own.end(), partial.begin() + omp_get_thread_num() * 2 * channels);
        }
        for (int64_t i = 0; i < 2 * channels; i++) {
            total[i] = 0;
            for (int64_t t = 0; t < threads; t++) total[i] += partial[t * 2 * channels + i];
        }
    }

    void forward(X* y, int threads) const {
        int64_t size = channels / groups;
        std::vector<double> total(2 * channels);
        std::vector<float> scale(channels), shift(channels), origin(channels);
        for (int64_t image = 0; image < images; image++) {
            // Shifted variance: subtract some value of the channel, as squares of a large mean would swamp the variance
            for (int64_t c = 0; c < channels; c++) origin[c] = to_float(x[image * pixels * channels + c]);
            sums(image, threads, total.data(), [&](int64_t at, int64_t c, Floats& one, Floats& other) {
                one = load(x + at) - load(&origin[c]);
                other = one * one;
            });
            // Per-channel statistics to per-group ones: var = mean of (channel variance + (channel mean - mean)^2)
            for (int64_t group = 0; group < groups; group++) {
                double mean_of_group = 0, variance = 0;
                for (int64_t c = group * size; c < (group + 1) * size; c++)
                    mean_of_group += (origin[c] + total[c] / pixels) / size;
                for (int64_t c = group * size; c < (group + 1) * size; c++) {
                    double own = total[c] / pixels, deviation = origin[c] + own - mean_of_group;
                    variance += (total[channels + c] / pixels - own * own + deviation * deviation) / size;
                }
                mean[image * groups + group] = mean_of_group;
                inverse_std[image * groups + group] = 1 / std::sqrt(std::max(variance, 0.0) + epsilon);
            }
            factors(image, scale.data(), shift.data());
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t pixel = 0; pixel < pixels; pixel++)
                for (int64_t c = 0; c < channels; c += LANES) {
                    int64_t at = (image * pixels + pixel) * channels + c;
                    Floats made = load(x + at) * load(&scale[c]) + load(&shift[c]);
                    store(y + at, swish ? made * sigmoid(made) : made);
                }
        }
    }

    // `y_grad` is given; the gradients of weight and bias are added to, as they sum over images.
    void backward(const X* y_grad, X* x_grad, double* weight_grad, double* bias_grad, int threads) const {
        int64_t size = channels / groups;
        std::vector<double> total(2 * channels);
        std::vector<float> scale(channels), shift(channels), mean_of_group(channels), inverse(channels),
            mean_grad(channels), mean_grad_x(channels);
        for (int64_t image = 0; image < images; image++) {
            factors(image, scale.data(), shift.data());
            for (int64_t c = 0; c < channels; c++) {
                mean_of_group[c] = mean[image * groups + c / size];
                inverse[c] = inverse_std[image * groups + c / size];
            }
            auto slope = [&](int64_t at, int64_t c, Floats value) {  // gradient at the norm's output, before SiLU
                Floats grad = load(y_grad + at);
                if (!swish) return grad;
                Floats made = value * load(&scale[c]) + load(&shift[c]), gate = sigmoid(made);
                return grad * gate * (1.0f + made * (1.0f - gate));
            };
            sums(image, threads, total.data(), [&](int64_t at, int64_t c, Floats& one, Floats& other) {
                Floats value = load(x + at);
                one = slope(at, c, value);
                other = one * (value - load(&mean_of_group[c])) * load(&inverse[c]);
            });
            // dx = (w g - mean(w g) - xhat mean(w g xhat)) / std, with means over the group
            for (int64_t group = 0; group < groups; group++) {
                double grad_sum = 0, grad_dot_x = 0;
                for (int64_t c = group * size; c < (group + 1) * size; c++) {
                    grad_sum += weight[c] * total[c];
                    grad_dot_x += weight[c] * total[channels + c];
                    bias_grad[c] += total[c];
                    weight_grad[c] += total[channels + c];
                }
                for (int64_t c = group * size; c < (group + 1) * size; c++) {
                    mean_grad[c] = grad_sum / (size * pixels);
                    mean_grad_x[c] = grad_dot_x / (size * pixels);
                }
            }
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t pixel = 0; pixel < pixels; pixel++)
                for (int64_t c = 0; c < channels; c += LANES) {
                    int64_t at = (image * pixels + pixel) * channels + c;
                    Floats value = load(x + at), inverse_here = load(&inverse[c]);
                    Floats normalized = (value - load(&mean_of_group[c])) * inverse_here;
                    Floats made = load(weight + c) * slope(at, c, value) - load(&mean_grad[c]) -
                                  normalized * load(&mean_grad_x[c]);
                    store(x_grad + at, made * inverse_here);
                }
        }
    }

    // The affine map y = scale x + shift that normalization, weight and bias amount to.
    void factors(int64_t image, float* scale, float* shift) const {
        for (int64_t c = 0; c < channels; c++) {
            int64_t at = image * groups + c / (channels / groups);
            scale[c] = weight[c] * inverse_std[at];
            shift[c] = bias[c] - mean[at] * scale[c];
        }
    }
};

}  // namespace
