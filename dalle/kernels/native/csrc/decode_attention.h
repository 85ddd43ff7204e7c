// Attention of a few new tokens per sequence to those in a KV cache.

#pragma once

#include <vector>

#include "simd.h"

// These structs mirror those in dalle/kernels/native/decode_attention.py. Optional pointers are null.
struct Norm {
    const float *weight, *bias;
    float eps;
    int32_t rms;
    // A LayerNorm, or an RMSNorm if `rms`.

    Norm from(int64_t channel) const { return {weight + channel, bias ? bias + channel : nullptr, eps, rms}; }
};

// New tokens attend to the cached ones, to earlier new ones and to themselves; keys and values go into the cache.
struct Attention {
    int64_t batch, tokens, heads, kv_heads, head_width, room, position, rotate_values;
    int64_t norm_stride;             // head_width where each head has norm weights of its own, else 0
    Norm q_norm, k_norm;
    const float *cos, *sin;          // [tokens, head_width / 2]; null without rotary positions
    const uint8_t* mask;             // 1 = may attend; [position + tokens] for each token; null: causal
    int64_t mask_batch, mask_token;  // strides of the mask from sequence to sequence and from token to token
    void *keys, *values;             // [batch, or slots, kv_heads, room, head_width]
    const void* qkv;                 // [batch, tokens, heads + 2 kv_heads, head_width]
    void* mixed;                     // [batch, tokens, heads, head_width], the result
    // Sequences at different positions: [batch] each, where a sequence is in the cache, and its own `position`, of which
    // `position` is the largest; null: sequence b is the cache's b-th. Then cos and sin differ, by this stride.
    const int64_t *slots, *positions;
    int64_t rope_batch;
};

namespace {

constexpr int PREFETCH_KEYS = 64;      // how many keys ahead to prefetch
constexpr int64_t L2_BYTES = 1 << 17;  // what stays in the L2 cache until it is used

void normalize(const Norm& norm, const float* x, float* y, int64_t width) {
    Floats total = {}, squares = {};
    float mean = 0;
    if (!norm.rms) {
        for (int64_t i = 0; i < width; i += LANES) total += load(x + i);
        mean = sum(total) / width;
    }
    for (int64_t i = 0; i < width; i += LANES) {
        Floats centered = load(x + i) - mean;
        squares += centered * centered;
    }
    float factor = 1 / std::sqrt(sum(squares) / width + norm.eps);
    for (int64_t i = 0; i < width; i += LANES) {
        Floats value = (load(x + i) - mean) * factor * load(norm.weight + i);
        store(y + i, norm.bias ? value + load(norm.bias + i) : value);
    }
}

// Apply rotary positions to one head: the channel pairs (i, i + width / 2).
void rotate(float* x, const float* cos, const float* sin, int64_t width) {
    for (int64_t i = 0; i < width / 2; i++) {
        float a = x[i], b = x[i + width / 2];
        x[i] = a * cos[i] - b * sin[i];
        x[i + width / 2] = b * cos[i] + a * sin[i];
    }
}

// X is the type of activations, C that of keys and values.
template <class X, class C>
struct CachedAttention {
    const Attention& args;

    // One head of one new token, with VECTORS * LANES channels; the sequence's earlier new tokens must be done, as
    // their keys are read from the cache. `key_index` and `weights` are buffers for the visible keys and their weights.
    template <int VECTORS>
    void head(int64_t b, int64_t t, int64_t h, int32_t* key_index, float* weights) const {
        constexpr int64_t width = VECTORS * LANES;
        const int64_t token = b * args.tokens + t, slot = args.slots ? args.slots[b] : b;
        const int64_t position = (args.positions ? args.positions[b] : args.position) + t, keys = position + 1;
        const int64_t group = args.heads / args.kv_heads, g = h / group;  // heads that share keys; which they share
        const X* from = static_cast<const X*>(args.qkv) + token * (args.heads + 2 * args.kv_heads) * width;
        const int64_t angle = b * args.rope_batch + t * width / 2;
        const float *cos = args.cos + angle, *sin = args.sin + angle;
        alignas(64) float q[width];
        for (int64_t i = 0; i < width; i += LANES) store(q + i, load(from + h * width + i));
        if (args.q_norm.weight) normalize(args.q_norm.from(h * args.norm_stride), q, q, width);
        if (args.cos) rotate(q, cos, sin, width);
        const int64_t first = (slot * args.kv_heads + g) * args.room * width;
        C *key = static_cast<C*>(args.keys) + first, *value = static_cast<C*>(args.values) + first;
        // The heads of a group run one after another in the same thread, so the others find the key stored
        if (h % group == 0) {  // the first of a group stores the new key and value
            const X *new_key = from + (args.heads + g) * width, *new_value = new_key + args.kv_heads * width;
            alignas(64) float k[width], v[width];
            for (int64_t i = 0; i < width; i += LANES) store(k + i, load(new_key + i)), store(v + i, load(new_value + i));
            if (args.q_norm.weight) normalize(args.k_norm.from(g * args.norm_stride), k, k, width);
            if (args.cos) rotate(k, cos, sin, width);
            if (args.cos && args.rotate_values) rotate(v, cos, sin, width);
            for (int64_t i = 0; i < width; i += LANES) {
                store(key + position * width + i, load(k + i));
                store(value + position * width + i, load(v + i));
            }
        }
        const uint8_t* mask = args.mask ? args.mask + b * args.mask_batch + t * args.mask_token : nullptr;
        int64_t count = 0;
        for (int64_t s = 0; s < keys; s++)
            if (!mask || mask[s]) key_index[count++] = s;
        // Prefetching and the loop in fours read past the end: point there at a valid key
        std::fill_n(key_index + count, PREFETCH_KEYS + 4, keys - 1);
        Floats query[VECTORS], mixed[VECTORS] = {};  // once here, not for each key
        for (int i = 0; i < VECTORS; i++) query[i] = load(q + i * LANES) / std::sqrt(float(width));
        // While reading these keys, prefetch what comes next. If a head's keys fit in L2, that is all its values, and
        // then the next head's keys. Otherwise it is the keys and values a few positions on.
        const bool fits = count * int64_t(width * sizeof(C)) <= L2_BYTES;
        const int64_t ahead = fits ? 0 : PREFETCH_KEYS;
        const C *following = (h + 1) % group ? key : key + args.room * width;  // keys of the next head
        const C *next_keys = fits ? value : key, *next_values = fits ? following : value;
        // Four keys at a time share the shuffles of `sum4`
        for (int64_t s = 0; s < count; s += 4) {  // scores past `count` are overwritten below
            Floats totals[4] = {};
            for (int j = 0; j < 4; j++) {
                prefetch<VECTORS>(next_keys + key_index[s + j + ahead] * width);
                for (int i = 0; i < VECTORS; i++)
                    totals[j] += query[i] * load(key + key_index[s + j] * width + i * LANES);
            }
            sum4(totals, weights + s);
        }
        // Up to a whole vector, with -inf: these weights become 0
        const int64_t padded = (count + LANES - 1) / LANES * LANES;
        std::fill(weights + count, weights + padded, -INFINITY);
        Floats highest = Floats{} - INFINITY, all = {};
        for (int64_t s = 0; s < padded; s += LANES) {
            Floats score = load(weights + s);
            highest = score > highest ? score : highest;
        }
        const float max_score = max_lane(highest);
        for (int64_t s = 0; s < padded; s += LANES) {
            Floats weight = exp_nonpositive(load(weights + s) - max_score);
            all += weight;
            store(weights + s, weight);
        }
        for (int64_t s = 0; s < count; s++) {
            prefetch<VECTORS>(next_values + key_index[s + ahead] * width);
            for (int i = 0; i < VECTORS; i++) mixed[i] += weights[s] * load(value + key_index[s] * width + i * LANES);
        }
        const float inverse_sum = 1 / sum(all);
        X* to = static_cast<X*>(args.mixed) + (token * args.heads + h) * width;
        for (int i = 0; i < VECTORS; i++) store(to + i * LANES, mixed[i] * inverse_sum);
    }

    template <int VECTORS>
    static void prefetch(const C* row) {
        for (int64_t i = 0; i < VECTORS * LANES; i += 64 / sizeof(C)) __builtin_prefetch(row + i, 0, 2);
    }

    // Sequences and heads of keys are divided among the threads; the tokens of a sequence go in order.
    template <int VECTORS>
    void all_heads() const {
        std::vector<int32_t> key_index(args.position + args.tokens + PREFETCH_KEYS + 4);
        std::vector<float> weights(args.position + args.tokens + LANES);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < args.batch * args.kv_heads; i++)
            for (int64_t t = 0; t < args.tokens; t++)
                for (int64_t j = 0, group = args.heads / args.kv_heads; j < group; j++)
                    head<VECTORS>(i / args.kv_heads, t, i % args.kv_heads * group + j, key_index.data(), weights.data());
    }

    // Called by all threads of a team. The head widths are those of dalle/kernels/native/decode_attention.py.
    void run() const {
        switch (args.head_width / LANES) {
            case 1: return all_heads<1>();
            case 2: return all_heads<2>();
            case 3: return all_heads<3>();
            case 4: return all_heads<4>();
            case 5: return all_heads<5>();
            case 6: return all_heads<6>();
            case 8: return all_heads<8>();
            case 16: return all_heads<16>();
#if !defined(__AVX512F__)  // narrower vectors: more of them
            case 10: return all_heads<10>();
            case 12: return all_heads<12>();
            case 20: return all_heads<20>();
            case 24: return all_heads<24>();
            case 32: return all_heads<32>();
            case 64: return all_heads<64>();
#endif
        }
    }
};

}  // namespace
