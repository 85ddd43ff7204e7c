// What dalle/kernels/native/__init__.py compiles for the machine that it runs on, and calls: products of few rows with a matrix,
// attention of few tokens a row to those in the cache, the blocks of a transformer made of both, and drawing a token;
// normalisation and convolution of images.
//
// The first three are bound by reading, the weights or the keys and values, once. What they compute is dalle/kernels/linear.py and
// dalle/models/transformer.py, which is what they are tested against.

#include "cross_entropy.h"
#include "group_norm.h"
#include "sample.h"
#include "attention.h"
#include "decode_step.h"
#include "winograd.h"

#define LINEAR(NAME, X, W)                                                                                        \
    extern "C" void NAME(const X* x, const W* weight, const float* scale, const X* bias, X* y, int64_t m,         \
                         int64_t n, int64_t k, int threads) {                                                     \
        _Pragma("omp parallel num_threads(threads)")                                           \
        Product<X, W>{x, weight, m, n, k, {y, n, scale, bias, nullptr, false}}.run();                             \
    }
LINEAR(linear_float32_float32, float, float)
LINEAR(linear_bfloat16_bfloat16, bfloat16, bfloat16)
LINEAR(linear_float32_int8, float, int8_t)

// By the types of the weights and of the cache.
#define STEP(NAME, W, C)                                          \
    extern "C" void NAME(const Step* step, int threads) {         \
        _Pragma("omp parallel num_threads(threads)") Blocks<W, C>{*step}.run(); \
    }
STEP(step_float32_float32, float, float)
STEP(step_bfloat16_bfloat16, bfloat16, bfloat16)
STEP(step_int8_float32, int8_t, float)

#define ATTEND(NAME, X)                                                  \
    extern "C" void NAME(const Attention* attention, int threads) {      \
        _Pragma("omp parallel num_threads(threads)") Heads<X, X>{*attention}.run(); \
    }
ATTEND(attend_float32, float)
ATTEND(attend_bfloat16, bfloat16)

// Returns how many rows are no distribution; their token is 0.
extern "C" int64_t sample(const float* logits, const double* uniform, int64_t* drawn, int64_t rows, int64_t vocabulary,
                          float temperature, int64_t top_k, double top_p, int threads) {
    int64_t failed = 0;
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        Sampler sampler(vocabulary);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < rows; row++) {
            const int64_t token = sampler.draw(logits + row * vocabulary, uniform[row], temperature, top_k, top_p);
            drawn[row] = std::max<int64_t>(token, 0);
            failed += token < 0;
        }
    }
    return failed;
}

#define NORMAL(NAME, X)                                                                                              \
    extern "C" void normal_forward_##NAME(const X* x, const float* weight, const float* bias, float* mean,           \
                                          float* inverse, X* y, int64_t b, int64_t p, int64_t c, int64_t g,          \
                                          float epsilon, int swish, int threads) {                                   \
        Normal<X>{x, weight, bias, mean, inverse, b, p, c, g, epsilon, swish != 0}.forward(y, threads);              \
    }                                                                                                                \
    extern "C" void normal_backward_##NAME(const X* x, const float* weight, const float* bias, float* mean,          \
                                           float* inverse, const X* given, X* to, double* of_weight, double* of_bias, \
                                           int64_t b, int64_t p, int64_t c, int64_t g, int swish, int threads) {     \
        Normal<X>{x, weight, bias, mean, inverse, b, p, c, g, 0.0f, swish != 0}                                      \
            .backward(given, to, of_weight, of_bias, threads);                                                       \
    }
NORMAL(float32, float)
NORMAL(bfloat16, bfloat16)

#define WINOGRAD(NAME, X)                                                                                            \
    extern "C" void winograd_forward_##NAME(const X* x, const float* kernel, const float* bias, float* weights, X* y, \
                                            int64_t b, int64_t h, int64_t w, int64_t k, int64_t n, int threads) {    \
        const winograd::Convolution<X> convolution{b, h, w, k, n};                                                                \
        convolution.weights(kernel, weights, threads);                                                               \
        convolution.forward(x, weights, bias, y, threads);                                                           \
    }                                                                                                                \
    extern "C" void winograd_backward_##NAME(const X* x, const X* given, float* kernel, int64_t b, int64_t h,        \
                                             int64_t w, int64_t k, int64_t n, int threads) {                         \
        winograd::Convolution<X>{b, h, w, k, n}.backward(x, given, kernel, threads);                                              \
    }
WINOGRAD(float32, float)
WINOGRAD(bfloat16, bfloat16)
#define ENTROPY(NAME, X)                                                                                          \
    extern "C" void entropy_##NAME(X* logits, const int64_t* ids, float* nats, float* log_z, float* of_bias,      \
                                   int64_t rows, int64_t n, float weight, int threads) {                           \
        cross_entropy(logits, ids, nats, log_z, of_bias, rows, n, weight, threads);                                \
    }
ENTROPY(float32, float)
ENTROPY(bfloat16, bfloat16)

SEQUENCES(forward)
SEQUENCES(backward)

// Whether the functions of sequences compute: where the CPU multiplies pairs of bfloat16.
extern "C" int pairs_of_bfloat16() {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}
