// GroupNorm over channels_last images, and swish of it, with gradients: each reads what it is given twice.
//
// B images, P cells, C channels in G groups. torch's own kernel for channels_last is slow, and one for the other layout
// takes two copies.

#pragma once

#include <omp.h>

#include <vector>

#include "simd.h"

namespace {

constexpr int64_t CELLS = 64;  // whose sums are in floats, before they are added to doubles

template <class X>
struct Normal {
    const X* x;                       // [B, P, C]
    const float *weight, *bias;       // [C]
    float *mean, *inverse;            // [B, G], of the deviation
    int64_t images, cells, channels, groups;
    float epsilon;
    bool swish;

    // Sums over the cells of each channel of two vectors that `values` gives for a place: [2, C].
    template <class F>
    void sums(int64_t image, int threads, double* total, F values) const {
        std::vector<double> partial(threads * 2 * channels);
#pragma omp parallel num_threads(threads)
        {
            std::vector<double> own(2 * channels);
            std::vector<float> near(2 * channels);
#pragma omp for schedule(static)
            for (int64_t block = 0; block < (cells + CELLS - 1) / CELLS; block++) {
                std::fill(near.begin(), near.end(), 0.0f);
                for (int64_t cell = block * CELLS; cell < std::min(cells, (block + 1) * CELLS); cell++)
                    for (int64_t c = 0; c < channels; c += LANES) {
                        Floats one, other;
                        values((image * cells + cell) * channels + c, c, one, other);
                        save(&near[c], load(&near[c]) + one);
                        save(&near[channels + c], load(&near[channels + c]) + other);
                    }
                for (int64_t i = 0; i < 2 * channels; i++) own[i] += near[i];
            }
            // Of each thread apart, so that a sum is the same each time
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
            // Squares of differences to some value of the channel, lest they vanish beside a large mean
            for (int64_t c = 0; c < channels; c++) origin[c] = to_float(x[image * cells * channels + c]);
            sums(image, threads, total.data(), [&](int64_t at, int64_t c, Floats& one, Floats& other) {
                one = load(x + at) - load(&origin[c]);
                other = one * one;
            });
            for (int64_t group = 0; group < groups; group++) {
                double middle = 0, spread = 0;
                for (int64_t c = group * size; c < (group + 1) * size; c++) middle += (origin[c] + total[c] / cells) / size;
                for (int64_t c = group * size; c < (group + 1) * size; c++) {
                    double own = total[c] / cells, away = origin[c] + own - middle;
                    spread += (total[channels + c] / cells - own * own + away * away) / size;
                }
                mean[image * groups + group] = middle;
                inverse[image * groups + group] = 1 / std::sqrt(std::max(spread, 0.0) + epsilon);
            }
            factors(image, scale.data(), shift.data());
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t cell = 0; cell < cells; cell++)
                for (int64_t c = 0; c < channels; c += LANES) {
                    int64_t at = (image * cells + cell) * channels + c;
                    Floats made = load(x + at) * load(&scale[c]) + load(&shift[c]);
                    save(y + at, swish ? made * sigmoid(made) : made);
                }
        }
    }

    // `given` is the gradient of y; those of weight and bias are added.
    void backward(const X* given, X* to, double* of_weight, double* of_bias, int threads) const {
        int64_t size = channels / groups;
        std::vector<double> total(2 * channels);
        std::vector<float> scale(channels), shift(channels), middle(channels), narrow(channels), first(channels), second(channels);
        for (int64_t image = 0; image < images; image++) {
            factors(image, scale.data(), shift.data());
            for (int64_t c = 0; c < channels; c++) {
                middle[c] = mean[image * groups + c / size];
                narrow[c] = inverse[image * groups + c / size];
            }
            auto slope = [&](int64_t at, int64_t c, Floats value) {  // of the normalised image, weighed and shifted
                Floats incoming = load(given + at);
                if (!swish) return incoming;
                Floats made = value * load(&scale[c]) + load(&shift[c]), share = sigmoid(made);
                return incoming * share * (1.0f + made * (1.0f - share));
            };
            sums(image, threads, total.data(), [&](int64_t at, int64_t c, Floats& one, Floats& other) {
                Floats value = load(x + at);
                one = slope(at, c, value);
                other = one * (value - load(&middle[c])) * load(&narrow[c]);
            });
            for (int64_t group = 0; group < groups; group++) {
                double plain = 0, along = 0;
                for (int64_t c = group * size; c < (group + 1) * size; c++) {
                    plain += weight[c] * total[c];
                    along += weight[c] * total[channels + c];
                    of_bias[c] += total[c];
                    of_weight[c] += total[channels + c];
                }
                for (int64_t c = group * size; c < (group + 1) * size; c++) {
                    first[c] = plain / (size * cells);
                    second[c] = along / (size * cells);
                }
            }
#pragma omp parallel for num_threads(threads) schedule(static)
            for (int64_t cell = 0; cell < cells; cell++)
                for (int64_t c = 0; c < channels; c += LANES) {
                    int64_t at = (image * cells + cell) * channels + c;
                    Floats value = load(x + at), tight = load(&narrow[c]);
                    Floats normal = (value - load(&middle[c])) * tight;
                    Floats made = load(weight + c) * slope(at, c, value) - load(&first[c]) - normal * load(&second[c]);
                    save(to + at, made * tight);
                }
        }
    }

    // y = scale x + shift
    void factors(int64_t image, float* scale, float* shift) const {
        for (int64_t c = 0; c < channels; c++) {
            int64_t at = image * groups + c / (channels / groups);
            scale[c] = weight[c] * inverse[at];
            shift[c] = bias[c] - mean[at] * scale[c];
        }
    }
};

}  // namespace
