// Attention of few tokens a row to those that a cache holds.

#pragma once

#include <vector>

#include "simd.h"

// What dalle/kernels/native/decode_step.py hands over. Pointers are null where there is no such thing.
struct Norm {
    const float *weight, *bias;
    float eps;
    int32_t rms;
};

// Some tokens a row look at themselves, those before them, and those in the cache, to which keys and values are added.
struct Attention {
    int64_t batch, tokens, heads, head_width, room, position, rotate_values;
    Norm q_norm, k_norm;
    const float *cos, *sin;           // [tokens, head_width / 2]
    const uint8_t* mask;              // 1 = may look at this key; of one token [position + tokens]
    int64_t mask_batch, mask_token;   // from one row's mask to the next, and from one token's
    void *keys, *values;              // [batch, heads, room, head_width]
    const void* qkv;                  // [batch, tokens, 3, heads, head_width]
    void* mixed;                      // [batch, tokens, heads, head_width], the result
};

namespace {

constexpr int SOON = 64;  // keys that are asked for before they are needed
constexpr int64_t STAYS = 1 << 17;  // bytes that stay in the second cache until they are needed

void normalise(const Norm& norm, const float* x, float* y, int64_t width) {
    Floats total = {}, squares = {};
    float mean = 0;
    if (!norm.rms) {
        for (int64_t i = 0; i < width; i += LANES) total += load(x + i);
        mean = sum(total) / width;
    }
    for (int64_t i = 0; i < width; i += LANES) {
        Floats centred = load(x + i) - mean;
        squares += centred * centred;
    }
    float factor = 1 / std::sqrt(sum(squares) / width + norm.eps);
    for (int64_t i = 0; i < width; i += LANES) {
        Floats value = (load(x + i) - mean) * factor * load(norm.weight + i);
        save(y + i, norm.bias ? value + load(norm.bias + i) : value);
    }
}

// Turn the pairs (i, i + width / 2) of one head.
void rotate(float* x, const float* cos, const float* sin, int64_t width) {
    for (int64_t i = 0; i < width / 2; i++) {
        float a = x[i], b = x[i + width / 2];
        x[i] = a * cos[i] - b * sin[i];
        x[i + width / 2] = b * cos[i] + a * sin[i];
    }
}

// X is the type of what comes in and goes out, C that of keys and values.
template <class X, class C>
struct Heads {
    const Attention& of;

    // One token's head of VECTORS * LANES channels; those before it in its row must be done. `which` and `weights` take
    // the keys that are looked at and their weights.
    template <int VECTORS>
    void head(int64_t b, int64_t t, int64_t h, int32_t* which, float* weights) const {
        constexpr int64_t width = VECTORS * LANES;
        const int64_t inner = of.heads * width, token = b * of.tokens + t, position = of.position + t, keys = position + 1;
        const X* from = static_cast<const X*>(of.qkv) + token * 3 * inner + h * width;
        alignas(64) float q[width], k[width], v[width];
        for (int64_t i = 0; i < width; i += LANES) {
            save(q + i, load(from + i)), save(k + i, load(from + inner + i)), save(v + i, load(from + 2 * inner + i));
        }
        if (of.q_norm.weight) normalise(of.q_norm, q, q, width), normalise(of.k_norm, k, k, width);
        if (of.cos) {
            const float *cos = of.cos + t * width / 2, *sin = of.sin + t * width / 2;
            rotate(q, cos, sin, width), rotate(k, cos, sin, width);
            if (of.rotate_values) rotate(v, cos, sin, width);
        }
        const int64_t first = (b * of.heads + h) * of.room * width;
        C *key = static_cast<C*>(of.keys) + first, *value = static_cast<C*>(of.values) + first;
        for (int64_t i = 0; i < width; i += LANES) {
            save(key + position * width + i, load(k + i));
            save(value + position * width + i, load(v + i));
        }
        const uint8_t* mask = of.mask ? of.mask + b * of.mask_batch + t * of.mask_token : nullptr;
        int64_t count = 0;
        for (int64_t s = 0; s < keys; s++)
            if (!mask || mask[s]) which[count++] = s;
        std::fill_n(which + count, SOON + 4, keys - 1);
        Floats wanted[VECTORS], mixed[VECTORS] = {};
        for (int i = 0; i < VECTORS; i++) wanted[i] = load(q + i * LANES) / std::sqrt(float(width));
        // What comes after these keys is asked for while they are read, if it stays in the second cache: their values,
        // and then the next head's keys. Else the keys and values some places on.
        const bool fits = count * int64_t(width * sizeof(C)) <= STAYS;
        const int64_t on = fits ? 0 : SOON;
        const C *after_keys = fits ? value : key, *after_values = fits ? key + of.room * width : value;
        for (int64_t s = 0; s < count; s += 4) {  // behind the last key others follow, whose weights are not looked at
            Floats totals[4] = {};
            for (int j = 0; j < 4; j++) {
                ask<VECTORS>(after_keys + which[s + j + on] * width);
                for (int i = 0; i < VECTORS; i++) totals[j] += wanted[i] * load(key + which[s + j] * width + i * LANES);
            }
            four(totals, weights + s);
        }
        const int64_t padded = (count + LANES - 1) / LANES * LANES;
        std::fill(weights + count, weights + padded, -INFINITY);
        Floats most = Floats{} - INFINITY, all = {};
        for (int64_t s = 0; s < padded; s += LANES) {
            Floats score = load(weights + s);
            most = score > most ? score : most;
        }
        const float top = largest(most);
        for (int64_t s = 0; s < padded; s += LANES) {
            Floats weight = exponential(load(weights + s) - top);
            all += weight;
            save(weights + s, weight);
        }
        for (int64_t s = 0; s < count; s++) {
            ask<VECTORS>(after_values + which[s + on] * width);
            for (int i = 0; i < VECTORS; i++) mixed[i] += weights[s] * load(value + which[s] * width + i * LANES);
        }
        const float share = 1 / sum(all);
        X* to = static_cast<X*>(of.mixed) + token * inner + h * width;
        for (int i = 0; i < VECTORS; i++) save(to + i * LANES, mixed[i] * share);
    }

    template <int VECTORS>
    static void ask(const C* row) {
        for (int64_t i = 0; i < VECTORS * LANES; i += 64 / sizeof(C)) __builtin_prefetch(row + i, 0, 2);
    }

    template <int VECTORS>
    void each() const {
        std::vector<int32_t> which(of.position + of.tokens + SOON + 4);
        std::vector<float> weights(of.position + of.tokens + LANES);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < of.batch * of.heads; i++)
            for (int64_t t = 0; t < of.tokens; t++)
                head<VECTORS>(i / of.heads, t, i % of.heads, which.data(), weights.data());
    }

    // To be run by a team of threads. There is code for heads of these widths.
    void run() const {
        switch (of.head_width / LANES) {
            case 1: return each<1>();
            case 2: return each<2>();
            case 3: return each<3>();
            case 4: return each<4>();
            case 5: return each<5>();
            case 6: return each<6>();
            case 8: return each<8>();
#if !defined(__AVX512F__)  // narrower vectors: more of them
            case 10: return each<10>();
            case 12: return each<12>();
            case 16: return each<16>();
            case 20: return each<20>();
            case 24: return each<24>();
            case 32: return each<32>();
#endif
        }
    }
};

}  // namespace
