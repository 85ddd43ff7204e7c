// The C interface of all native kernels, instantiated for their types. dalle/kernels/native/build.py compiles this file
// for the machine it runs on; dalle/kernels/native/bindings.py declares the same functions for ctypes.
//
// Each kernel computes what the function of the same name in dalle/kernels computes, against which it is tested. Linear
// layers, decode attention and the decode step are bound by memory: they read the weights, or the keys and values,
// once.
//
// X, W and C are the types of activations, weights and the KV cache. Callers pass the number of threads: waking more
// than the work is worth takes longer than the work (`threads` in bindings.py).

#include "cross_entropy.h"
#include "group_norm.h"
#include "sample.h"
#include "attention.h"
#include "decode_step.h"
#include "winograd.h"

#define LINEAR(NAME, X, W)                                                                                           \
    extern "C" void NAME(const X* x, const W* weight, const float* scale, const X* bias, X* y, int64_t m, int64_t n, \
                         int64_t k, int threads) {                                                                   \
        _Pragma("omp parallel num_threads(threads)")                                                                 \
            Gemm<X, W>{x, weight, m, n, k, {y, n, scale, bias, nullptr, false}}                                      \
                .run();                                                                                              \
    }
LINEAR(linear_float32_float32, float, float)
LINEAR(linear_bfloat16_bfloat16, bfloat16, bfloat16)
LINEAR(linear_float32_int8, float, int8_t)

#define DECODE_STEP(NAME, W, C)                                                 \
    extern "C" void NAME(const Step* step, int threads) {                       \
        _Pragma("omp parallel num_threads(threads)") Blocks<W, C>{*step}.run(); \
    }
DECODE_STEP(decode_step_float32_float32, float, float)
DECODE_STEP(decode_step_bfloat16_bfloat16, bfloat16, bfloat16)
DECODE_STEP(decode_step_int8_float32, int8_t, float)

#define DECODE_ATTENTION(NAME, X)                                                             \
    extern "C" void NAME(const Attention* attention, int threads) {                           \
        _Pragma("omp parallel num_threads(threads)") CachedAttention<X, X>{*attention}.run(); \
    }
DECODE_ATTENTION(decode_attention_float32, float)
DECODE_ATTENTION(decode_attention_bfloat16, bfloat16)

// Returns the number of rows whose logits are not finite; their token is 0.
extern "C" int64_t sample(const float* logits, const double* uniform, int64_t* tokens, int64_t rows, int64_t vocabulary,
                          float temperature, int64_t top_k, double top_p, int threads) {
    int64_t failed = 0;
#pragma omp parallel num_threads(threads) reduction(+ : failed)
    {
        Sampler sampler(vocabulary);
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < rows; row++) {
            const int64_t token = sampler.sample(logits + row * vocabulary, uniform[row], temperature, top_k, top_p);
            tokens[row] = std::max<int64_t>(token, 0);
            failed += token < 0;
        }
    }
    return failed;
}

#define GROUP_NORM(NAME, X)                                                                                         \
    extern "C" void group_norm_forward_##NAME(const X* x, const float* weight, const float* bias, float* mean,      \
                                              float* inverse_std, X* y, int64_t b, int64_t p, int64_t c, int64_t g, \
                                              float epsilon, int swish, int threads) {                              \
        GroupNorm<X>{x, weight, bias, mean, inverse_std, b, p, c, g, epsilon, swish != 0}.forward(y, threads);      \
    }                                                                                                               \
    extern "C" void group_norm_backward_##NAME(const X* x, const float* weight, const float* bias, float* mean,     \
                                               float* inverse_std, const X* y_grad, X* x_grad, double* weight_grad, \
                                               double* bias_grad, int64_t b, int64_t p, int64_t c, int64_t g,       \
                                               int swish, int threads) {                                            \
        GroupNorm<X>{x, weight, bias, mean, inverse_std, b, p, c, g, 0.0f, swish != 0}.backward(                    \
            y_grad, x_grad, weight_grad, bias_grad, threads);                                                       \
    }
GROUP_NORM(float32, float)
GROUP_NORM(bfloat16, bfloat16)

#define WINOGRAD(NAME, X)                                                                                         \
    extern "C" void winograd_forward_##NAME(const X* x, const float* kernel, const float* bias, float* u, X* y,   \
                                            int64_t b, int64_t h, int64_t w, int64_t k, int64_t n, int threads) { \
        const winograd::Convolution<X> convolution{b, h, w, k, n};                                                \
        convolution.transform_filters(kernel, u, threads);                                                        \
        convolution.forward(x, u, bias, y, threads);                                                              \
    }                                                                                                             \
    extern "C" void winograd_backward_##NAME(const X* x, const X* y_grad, float* kernel, int64_t b, int64_t h,    \
                                             int64_t w, int64_t k, int64_t n, int threads) {                      \
        winograd::Convolution<X>{b, h, w, k, n}.backward(x, y_grad, kernel, threads);                             \
    }
WINOGRAD(float32, float)
WINOGRAD(bfloat16, bfloat16)
#define CROSS_ENTROPY(NAME, X)                                                                                       \
    extern "C" void cross_entropy_##NAME(X* logits, const int64_t* ids, float* nats, float* log_z, float* bias_grad, \
                                         int64_t rows, int64_t n, float weight, int threads) {                       \
        cross_entropy(logits, ids, nats, log_z, bias_grad, rows, n, weight, threads);                                \
    }
CROSS_ENTROPY(float32, float)
CROSS_ENTROPY(bfloat16, bfloat16)

ATTENTION(forward)
ATTENTION(backward)

// Whether the attention_* functions do anything.
extern "C" int has_bfloat16_dot() {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}
