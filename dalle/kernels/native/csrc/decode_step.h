// One decode step: all blocks of a transformer over a few tokens per sequence, by one team of threads without forks and
// joins in between.

#pragma once

#include <type_traits>

#include "decode_attention.h"
#include "gemm.h"

struct Matrix {
    // A linear layer. This and the following structs mirror those in dalle/kernels/native/decode_step.py.
    const void* weight;         // [n, k]
    const float *scale, *bias;  // [n]; scale of int8 rows
    int64_t n, k;
};

struct Layer {
    // Either end may be empty: weight null
    Norm attention_norm, attention_end, feed_norm, feed_end;
    const float *attention_scale, *feed_scale;  // [width]
    Matrix qkv, out, up, down;
    Attention attention;
};

struct Step {
    int64_t rows, width, hidden, layers, activation;
    Layer* layer;
    float* x;  // [rows, width], updated in place; the rows are the tokens of one sequence after those of another
    float *normed, *qkv, *mixed, *wide, *active;  // buffers [rows, ...]: width, 3 inner, inner, columns of up, hidden
    void* narrow;                                 // buffer for an activation in the type of the weights
};

namespace {

// Kinds of feed-forward layers, in the order of _ACTIVATIONS in dalle/kernels/native/decode_step.py.
enum Activation { GELU, GELU_TANH, QUICK_GELU, SWIGLU, GEGLU, GEGLU_TANH };

inline Floats activation(Floats x, int64_t kind) {
    // gelu_tanh: x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)) equals x (1 + tanh(sqrt(2 / pi) (...))) / 2
    switch (kind) {
        case GELU_TANH:
        case GEGLU_TANH: return x * sigmoid(1.595769122f * (x + 0.044715f * x * x * x));
        case QUICK_GELU: return x * sigmoid(1.702f * x);
        case SWIGLU: return x * sigmoid(x);
        default: return gelu(x);
    }
}

// W is the type of the weights, C that of keys and values; activations are float32.
template <class W, class C>
struct Blocks {
    const Step& step;
    // With bfloat16 dot products, rounding the activations first is more than twice as fast from a few rows on
    static constexpr bool ROUND_ACTIVATIONS = std::is_same<W, bfloat16>::value && Dot<W, W>::STEP > LANES;

    void norm(const Norm& norm, const float* x, float* y) const {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < step.rows; b++) normalize(norm, x + b * step.width, y + b * step.width, step.width);
    }

    void linear(const Matrix& matrix, const float* x, float* y, const float* factor = nullptr, bool add = false) const {
        const Output<float> output{y, matrix.n, matrix.scale, matrix.bias, factor, add};
        const W* weight = static_cast<const W*>(matrix.weight);
        if constexpr (ROUND_ACTIVATIONS) {
            W* narrow = static_cast<W*>(step.narrow);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < step.rows * matrix.k; i += LANES) store(narrow + i, load(x + i));
            Gemm<W, W, float>{narrow, weight, step.rows, matrix.n, matrix.k, output}.run();
        } else {
            Gemm<float, W>{x, weight, step.rows, matrix.n, matrix.k, output}.run();
        }
    }

    // Add a branch's output to the residual stream, after its norm and scale, if it has them.
    void add(const Matrix& matrix, const float* from, const Norm& last, const float* factor) const {
        if (!last.weight) return linear(matrix, from, step.x, factor, true);
        linear(matrix, from, step.normed);
        norm(last, step.normed, step.normed);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < step.rows * step.width; i++)
            step.x[i] += step.normed[i] * (factor ? factor[i % step.width] : 1.0f);
    }

    void activate() const {
        const bool gated = step.activation >= SWIGLU;
        const int64_t pieces = step.hidden / LANES, line = gated ? 2 * step.hidden : step.hidden;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < step.rows * pieces; i++) {
            const float* x = step.wide + i / pieces * line + i % pieces * LANES;
            Floats value = activation(load(x), step.activation);
            store(step.active + i * LANES, gated ? value * load(x + step.hidden) : value);
        }
    }

    // Called by all threads of a team; each `omp for` ends with a barrier, so steps see the finished one before.
    void run() const {
        for (int64_t i = 0; i < step.layers; i++) {
            const Layer& layer = step.layer[i];
            norm(layer.attention_norm, step.x, step.normed);
            linear(layer.qkv, step.normed, step.qkv);
            CachedAttention<float, C>{layer.attention}.run();
            add(layer.out, step.mixed, layer.attention_end, layer.attention_scale);
            norm(layer.feed_norm, step.x, step.normed);
            linear(layer.up, step.normed, step.wide);
            activate();
            add(layer.down, step.active, layer.feed_end, layer.feed_scale);
        }
    }
};

}  // namespace
