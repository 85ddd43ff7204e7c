// The blocks of a transformer over few tokens a row.

#pragma once

#include <type_traits>

#include "decode_attention.h"
#include "gemm.h"

struct Matrix {
    const void* weight;  // [n, k]
    const float *scale, *bias;  // [n]
    int64_t n, k;
};

struct Layer {
    Norm attention_norm, attention_end, feed_norm, feed_end;
    const float *attention_scale, *feed_scale;  // [width]
    Matrix qkv, out, up, down;
    Attention attention;
};

struct Step {
    int64_t rows, width, hidden, layers, activation;
    Layer* layer;
    float* x;  // [rows, width], is replaced: the tokens of one row of the batch after those of another
    float *normed, *qkv, *mixed, *wide, *active;  // room for [rows, ...] width, 3 inner, inner, up's columns, hidden
    void* narrow;  // room for what a product takes, in the type of the weights
};

namespace {

// The kinds of feed-forward parts, in the order of dalle/kernels/native/decode_step.py.
enum Activation { GELU, GELU_TANH, QUICK_GELU, SWIGLU, GEGLU };

inline Floats activation(Floats x, int64_t kind) {
    switch (kind) {
        case GELU_TANH: return x * sigmoid(1.595769122f * (x + 0.044715f * x * x * x));
        case QUICK_GELU: return x * sigmoid(1.702f * x);
        case SWIGLU: return x * sigmoid(x);
        default: return gelu(x);
    }
}

// W is the type of the weights, C that of keys and values; all else is float.
template <class W, class C>
struct Blocks {
    const Step& step;
    // Where the machine multiplies halves themselves, that is more than twice as fast from a few rows on
    static constexpr bool NARROW = std::is_same<W, bfloat16>::value && Kind<W, W>::STEP > LANES;

    void norm(const Norm& norm, const float* x, float* y) const {
#pragma omp for schedule(static)
        for (int64_t b = 0; b < step.rows; b++) normalise(norm, x + b * step.width, y + b * step.width, step.width);
    }

    void product(const Matrix& matrix, const float* x, float* y, const float* factor = nullptr, bool add = false) const {
        const Output<float> output{y, matrix.n, matrix.scale, matrix.bias, factor, add};
        const W* weight = static_cast<const W*>(matrix.weight);
        if constexpr (NARROW) {
            W* narrow = static_cast<W*>(step.narrow);
#pragma omp for schedule(static)
            for (int64_t i = 0; i < step.rows * matrix.k; i += LANES) save(narrow + i, load(x + i));
            Product<W, W, float>{narrow, weight, step.rows, matrix.n, matrix.k, output}.run();
        } else {
            Product<float, W>{x, weight, step.rows, matrix.n, matrix.k, output}.run();
        }
    }

    // Add to the residual stream what a branch gives, normalised and scaled where it is.
    void add(const Matrix& matrix, const float* from, const Norm& last, const float* factor) const {
        if (!last.weight) return product(matrix, from, step.x, factor, true);
        product(matrix, from, step.normed);
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
            save(step.active + i * LANES, gated ? value * load(x + step.hidden) : value);
        }
    }

    // To be run by a team of threads.
    void run() const {
        for (int64_t i = 0; i < step.layers; i++) {
            const Layer& layer = step.layer[i];
            norm(layer.attention_norm, step.x, step.normed);
            product(layer.qkv, step.normed, step.qkv);
            Heads<float, C>{layer.attention}.run();
            add(layer.out, step.mixed, layer.attention_end, layer.attention_scale);
            norm(layer.feed_norm, step.x, step.normed);
            product(layer.up, step.normed, step.wide);
            activate();
            add(layer.down, step.active, layer.feed_end, layer.feed_scale);
        }
    }
};

}  // namespace
