// Attention over whole sequences in bfloat16, with gradients. As in FlashAttention (Dao et al. 2022, arXiv 2205.14135),
// scores exist only while they are in the CPU's cache, and are computed again in the backward pass. Products use
// AVX512-BF16's dot products of pairs of bfloat16, accumulated in float32.
//
// T tokens, D channels of a head. A "word" is 32 bits: two bfloat16 that are neighbors along the axis of the sum.

#pragma once

#include <omp.h>

#include <vector>

#include "simd.h"

struct Sequences {
    const void *q, *k, *v;  // bfloat16 [B, H, T, D]; the channels are contiguous
    int64_t strides[3][3];  // of q, k, v: batch, head, token
    const uint8_t* mask;    // [T, T], 1 if the query may attend to the key; null: see `causal`
    int64_t causal;         // without a mask: 1 if keys after the query are hidden
    int64_t batch, heads, tokens, channels;
    float scale;                     // of the scores, 1 / sqrt(D)
    void* out;                       // bfloat16 [B, T, H, D]
    float* lse;                      // [B, H, T], log-sum-exp of the scores
    const void* out_grad;            // backward: bfloat16 [B, T, H, D]
    void *q_grad, *k_grad, *v_grad;  // backward: bfloat16, written; tokens are `grad_stride` apart
    int64_t grad_stride;
};

#if defined(__AVX512BF16__)

namespace {

constexpr int64_t ROWS = 4, BLOCK = 64;  // rows and columns of a block whose sums stay in registers

inline __m512bh as_pairs(__m512i words) { return (__m512bh)words; }

// out[r][n] = sum over k in [first, last) of words a[r * row_stride + k * k_stride] times b[k * width + 16 n ...], for
// ROWS rows and 16 N columns. Not inlined, so that the compiler keeps the N columns in registers.
template <int N>
__attribute__((noinline)) void matmul(const uint32_t* a, int64_t row_stride, int64_t k_stride, const uint32_t* b,
                                      int64_t width, int64_t first, int64_t last, __m512 (*sums)[N]) {
    // A local copy, which stays in registers: through the pointer it would be written in each round
    __m512 own[ROWS][N];
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < N; n++) own[r][n] = _mm512_setzero_ps();
    for (int64_t k = first; k < last; k++) {
        __m512bh columns[N];
        for (int n = 0; n < N; n++) columns[n] = as_pairs(_mm512_loadu_si512(b + k * width + 16 * n));
        for (int r = 0; r < ROWS; r++) {
            // Channels 2 k and 2 k + 1, to all columns
            const __m512bh row = as_pairs(_mm512_set1_epi32(a[r * row_stride + k * k_stride]));
            for (int n = 0; n < N; n++) own[r][n] = _mm512_dpbf16_ps(own[r][n], row, columns[n]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < N; n++) sums[r][n] = own[r][n];
}

inline void store_rounded(bfloat16* to, __m512 values) {
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(values);
    std::memcpy(to, &halves, sizeof(halves));
}

// e^x for x <= 0, with a relative error of 3e-7; nan stays nan. 2^n e^r with r by its Taylor series; ln 2 is subtracted
// in two parts, so that r is exact.
inline __m512 exp_nonpositive_ps(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    const __m512 high = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    const __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), high);
    __m512 series = _mm512_set1_ps(1.0f / 720);
    for (float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(term));
    return _mm512_scalef_ps(series, n);
}

// Transpose 16 x 16 words, in four rounds that exchange blocks of 1, 2, 4 and 8 words.
inline void transpose_16x16(const uint32_t* from, int64_t down, uint32_t* to, int64_t across) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * down);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++) {  // quarters of rows i, 4 + i, 8 + i and 12 + i form the rows of the result
        const __m512i one = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88),
                      two = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
        const __m512i three = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd),
                      four = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
        b[i] = _mm512_shuffle_i32x4(one, two, 0x88), b[8 + i] = _mm512_shuffle_i32x4(one, two, 0xdd);
        b[4 + i] = _mm512_shuffle_i32x4(three, four, 0x88), b[12 + i] = _mm512_shuffle_i32x4(three, four, 0xdd);
    }
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * across, b[i]);
}

// One head of one sequence, with buffers that are reused for the next.
class Head {
 public:
    Head(const Sequences& all) : s(all), words(s.channels / 2), padded((s.tokens + BLOCK - 1) / BLOCK * BLOCK) {
        // Keys after the last visible one are skipped, and for keys, queries before the first that sees them
        key_end.resize(padded, s.tokens), first_query.resize(padded, 0);
        for (int64_t i = 0; i < s.tokens; i++) {
            if (s.mask) {
                // Only the hidden end of a row is skipped here; holes before it are left to `visible`
                key_end[i] = s.tokens;
                while (key_end[i] > 0 && !s.mask[i * s.tokens + key_end[i] - 1]) key_end[i]--;
            } else if (s.causal) {
                key_end[i] = i + 1;
            }
        }
        // The first query whose visible keys reach key j; it never decreases with j
        for (int64_t j = 0; j < s.tokens; j++)
            while (first_query[j] + 1 < s.tokens && key_end[first_query[j]] <= j) first_query[j]++;
        // New memory is zero, and loading writes `tokens` rows only: the padding rows stay zero
        for (auto* buffer : {&q, &k, &v, &out_grad}) buffer->resize(padded * words);
        for (auto* buffer : {&k_transposed, &v_transposed}) buffer->resize(padded * words);
        for (auto* buffer : {&q_pairs, &k_pairs, &v_pairs, &out_grad_pairs}) buffer->resize(padded * words);
        row.resize(ROWS * padded / 2);
        scores.resize(ROWS * padded), weight_grads.resize(ROWS * padded);
    }

    // For ROWS queries at a time: scores, softmax, product with the values.
    void forward(int64_t number) {
        load_head(number, 0, s.q, q), load_head(number, 1, s.k, k), load_head(number, 2, s.v, v);
        transpose(k, k_transposed), pair_tokens(v, v_pairs);
        for (int64_t i = 0; i < s.tokens; i += ROWS) {
            const int64_t end = key_count(i);
            float scales[ROWS];
            multiply_keys(q, k_transposed, i, end, scores.data());
            for (int64_t r = 0; r < ROWS; r++) {
                float lse = 0;
                scales[r] = softmax(scores.data() + r * padded, i + r, end, row.data() + r * padded / 2, lse);
                if (i + r < s.tokens) s.lse[number * s.tokens + i + r] = lse;
            }
            // Two keys make a word, hence end / 2; the softmax is normalized here, on D sums instead of T weights
            multiply_store(row.data(), padded / 2, 1, v_pairs, 0, end / 2, i, (bfloat16*)s.out, s.heads * s.channels,
                           number, scales);
        }
    }

    // With P the attention weights and dO the gradient of the output: dV = P^T dO, dP = dO V^T,
    // dS = P * (dP - rowsum(dO * O)) * scale, dQ = dS K, dK = dS^T Q.
    void backward(int64_t number) {
        load_head(number, 0, s.q, q), load_head(number, 1, s.k, k), load_head(number, 2, s.v, v);
        const int64_t between = s.heads * s.channels, at = offset(number, between);
        const bfloat16 *out = (const bfloat16*)s.out + at, *grad = (const bfloat16*)s.out_grad + at;
        copy(grad, between, out_grad);
        transpose(k, k_transposed), transpose(v, v_transposed), pair_tokens(q, q_pairs), pair_tokens(k, k_pairs),
            pair_tokens(out_grad, out_grad_pairs);
        weights.resize(padded / 2 * padded), score_grads.resize(padded / 2 * padded);
        // With a mask, a later query may see fewer keys than an earlier one; what it does not write must be 0
        if (s.mask) std::fill(weights.begin(), weights.end(), 0), std::fill(score_grads.begin(), score_grads.end(), 0);
        for (int64_t i = 0; i < s.tokens; i += ROWS) {
            const int64_t end = key_count(i);
            float lses[ROWS] = {}, means[ROWS] = {};
            // rowsum(dO * O) equals rowsum(P * dP), which would need all of P first
            for (int64_t r = 0; r < std::min(ROWS, s.tokens - i); r++) {
                const int64_t begin = (i + r) * between;
                lses[r] = s.lse[number * s.tokens + i + r];
                __builtin_prefetch(out + begin + 8 * between);
                for (int64_t d = 0; d < s.channels; d += LANES)
                    means[r] += sum(load(out + begin + d) * load(grad + begin + d));
            }
            multiply_keys(q, k_transposed, i, end, scores.data());
            multiply_keys(out_grad, v_transposed, i, end, weight_grads.data());
            // Two queries at a time: words of `weights` and `score_grads` are pairs of queries
            for (int64_t r = 0; r < ROWS; r += 2) score_gradients(i, r, end, lses + r, means + r);
            multiply_store(row.data(), padded / 2, 1, k_pairs, 0, end / 2, i, (bfloat16*)s.q_grad, s.grad_stride,
                           number);
        }
        for (int64_t j = 0; j < s.tokens; j += ROWS) {
            // From the first pair of queries that sees any of these keys; later keys begin no earlier
            const int64_t first = first_query[j] / 2, last = (s.tokens + 1) / 2;
            multiply_store(weights.data() + j, 1, padded, out_grad_pairs, first, last, j, (bfloat16*)s.v_grad,
                           s.grad_stride, number);
            multiply_store(score_grads.data() + j, 1, padded, q_pairs, first, last, j, (bfloat16*)s.k_grad,
                           s.grad_stride, number);
        }
    }

 private:
    const Sequences& s;
    const int64_t words, padded;                // words of a token; tokens, with rows of zeros behind the last
    std::vector<int64_t> key_end, first_query;  // of a query, the end of its visible keys; of a key, its first query
    std::vector<uint32_t> q, k, v, out_grad;    // [padded, words], words along channels
    std::vector<uint32_t> k_transposed, v_transposed;                 // [words, padded]
    std::vector<uint32_t> q_pairs, k_pairs, v_pairs, out_grad_pairs;  // [padded / 2, D], words along tokens
    std::vector<uint32_t> row;                   // [ROWS, padded / 2], weights or score gradients, words along keys
    std::vector<uint32_t> weights, score_grads;  // [padded / 2, padded], words along queries
    std::vector<float> scores, weight_grads;     // [ROWS, padded]

    // Where a head begins in a tensor [B, T, H, D] with this token stride.
    int64_t offset(int64_t number, int64_t between) const {
        return number / s.heads * s.tokens * between + number % s.heads * s.channels;
    }

    void load_head(int64_t number, int which, const void* from, std::vector<uint32_t>& to) const {
        const int64_t* stride = s.strides[which];
        copy((const bfloat16*)from + number / s.heads * stride[0] + number % s.heads * stride[1], stride[2], to);
    }

    void copy(const bfloat16* from, int64_t stride, std::vector<uint32_t>& to) const {
        for (int64_t t = 0; t < s.tokens; t++) std::memcpy(&to[t * words], from + t * stride, words * 4);
    }

    // From words [padded, words] to [words, padded].
    void transpose(const std::vector<uint32_t>& from, std::vector<uint32_t>& to) const {
        for (int64_t t = 0; t < padded; t += 16)
            for (int64_t w = 0; w < words; w += 16)
                transpose_16x16(&from[t * words + w], words, &to[w * padded + t], padded);
    }

    // From words along channels to words along tokens: bfloat16 of tokens t and t + 1 side by side.
    void pair_tokens(const std::vector<uint32_t>& from, std::vector<uint32_t>& to) const {
        for (int64_t t = 0; t < padded; t += 2)
            for (int64_t w = 0; w < words; w += 8) {
                const __m512i one = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)&from[t * words + w]));
                const __m512i other =
                    _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)&from[(t + 1) * words + w]));
                _mm512_storeu_si512(&to[t * words + 2 * w], _mm512_or_si512(one, _mm512_slli_epi32(other, 16)));
            }
    }

    // The number of keys that ROWS queries need, rounded up to half a block.
    int64_t key_count(int64_t i) const {
        int64_t last = 0;
        for (int64_t r = i; r < std::min(i + ROWS, s.tokens); r++) last = std::max(last, key_end[r]);
        return (last + BLOCK / 2 - 1) / (BLOCK / 2) * (BLOCK / 2);
    }

    // Products of ROWS queries (or output gradients) with all needed keys (or values).
    void multiply_keys(const std::vector<uint32_t>& rows, const std::vector<uint32_t>& b, int64_t i, int64_t end,
                       float* to) const {
        int64_t j = 0;
        for (; j + BLOCK <= end; j += BLOCK) block<4>(rows, b, i, j, to);
        if (j < end) block<2>(rows, b, i, j, to);
    }

    template <int N>
    void block(const std::vector<uint32_t>& rows, const std::vector<uint32_t>& b, int64_t i, int64_t j,
               float* to) const {
        __m512 sums[ROWS][N];
        matmul<N>(&rows[i * words], words, 1, &b[j], padded, 0, words, sums);
        for (int r = 0; r < ROWS; r++)
            for (int n = 0; n < N; n++) _mm512_storeu_ps(to + r * padded + j + 16 * n, sums[r][n]);
    }

    // Which of 16 keys from j on a query may attend to, one bit each.
    __mmask16 visible(int64_t token, int64_t j) const {
        const int64_t last = token < s.tokens ? key_end[token] : 0;
        uint32_t kept = j + 16 <= last ? 0xffff : j >= last ? 0 : (1u << (last - j)) - 1;
        if (s.mask && kept) kept &= _mm_test_epi8_mask(mask_bytes(token, j, kept), _mm_set1_epi8(-1));
        return kept;
    }

    __m128i mask_bytes(int64_t token, int64_t j, __mmask16 there) const {
        return _mm_maskz_loadu_epi8(there, s.mask + token * s.tokens + j);
    }

    // Unnormalized softmax of a query's scores, as words; returns 1 / sum, and the log-sum-exp by reference.
    float softmax(const float* own, int64_t token, int64_t end, uint32_t* to, float& lse) const {
        __m512 high = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
        const __m512 scale = _mm512_set1_ps(s.scale);
        for (int64_t j = 0; j < end; j += 16)
            high = _mm512_mask_max_ps(high, visible(token, j), high, _mm512_loadu_ps(own + j));
        const float highest = _mm512_reduce_max_ps(high);
        const __m512 shift = _mm512_set1_ps(highest * s.scale);
        for (int64_t j = 0; j < end; j += 16) {
            const __m512 low = _mm512_fmsub_ps(_mm512_loadu_ps(own + j), scale, shift);
            const __m512 value = _mm512_maskz_mov_ps(visible(token, j), exp_nonpositive_ps(low));
            total = _mm512_add_ps(total, value);
            store_rounded((bfloat16*)to + j, value);
        }
        const float sum = _mm512_reduce_add_ps(total);
        lse = highest * s.scale + std::log(sum);
        return sum > 0 || sum != sum ? 1 / sum : 0;  // 0 for padding rows, which see no key; nan is passed on
    }

    // Attention weights and score gradients of queries i + r and i + r + 1: as words of both, and the latter along
    // keys.
    void score_gradients(int64_t i, int64_t r, int64_t end, const float* lses, const float* means) {
        const __m512 scale = _mm512_set1_ps(s.scale);
        const int64_t pair = (i + r) / 2 * padded;
        for (int64_t j = 0; j < end; j += 16) {
            __m512i weight[2], grad[2];
            for (int64_t one = 0; one < 2; one++) {
                const int64_t at = (r + one) * padded + j;
                const __m512 low = _mm512_fmsub_ps(_mm512_loadu_ps(&scores[at]), scale, _mm512_set1_ps(lses[one]));
                // P is recomputed from the saved log-sum-exp, already normalized
                const __m512 value = _mm512_maskz_mov_ps(visible(i + r + one, j), exp_nonpositive_ps(low));
                const __m512 change = _mm512_sub_ps(_mm512_loadu_ps(&weight_grads[at]), _mm512_set1_ps(means[one]));
                weight[one] = halves(value), grad[one] = halves(_mm512_mul_ps(_mm512_mul_ps(value, change), scale));
                _mm256_storeu_si256((__m256i*)((bfloat16*)row.data() + at), _mm512_cvtepi32_epi16(grad[one]));
            }
            _mm512_storeu_si512(&weights[pair + j], _mm512_or_si512(weight[0], _mm512_slli_epi32(weight[1], 16)));
            _mm512_storeu_si512(&score_grads[pair + j], _mm512_or_si512(grad[0], _mm512_slli_epi32(grad[1], 16)));
        }
    }

    static __m512i halves(__m512 values) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(values)); }

    // Multiply ROWS rows of words by b [K, D], and store the result as tokens i to i + ROWS - 1 of a head.
    void multiply_store(const uint32_t* a, int64_t along_rows, int64_t along, const std::vector<uint32_t>& b,
                        int64_t first, int64_t last, int64_t i, bfloat16* to, int64_t stride, int64_t number,
                        const float* scales = nullptr) const {
        to += offset(number, stride);
        for (int64_t d = 0; d < s.channels; d += 16) {
            if (d + 64 <= s.channels) {
                multiply_store_columns<4>(a, along_rows, along, &b[d], first, last, i, to + d, stride, scales);
                d += 48;
            } else {
                multiply_store_columns<1>(a, along_rows, along, &b[d], first, last, i, to + d, stride, scales);
            }
        }
    }

    template <int N>
    void multiply_store_columns(const uint32_t* a, int64_t along_rows, int64_t along, const uint32_t* b, int64_t first,
                                int64_t last, int64_t i, bfloat16* to, int64_t stride, const float* scales) const {
        __m512 sums[ROWS][N];
        matmul<N>(a, along_rows, along, b, s.channels, first, last, sums);
        for (int64_t r = 0; r < ROWS && i + r < s.tokens; r++)
            for (int n = 0; n < N; n++)
                store_rounded(to + (i + r) * stride + 16 * n,
                              scales ? _mm512_mul_ps(sums[r][n], _mm512_set1_ps(scales[r])) : sums[r][n]);
    }
};

}  // namespace

#define ATTENTION(NAME)                                                                                               \
    extern "C" void attention_##NAME(const Sequences* all, int threads) {                                             \
        _Pragma("omp parallel num_threads(threads)") {                                                                \
            Head head(*all);                                                                                          \
            _Pragma("omp for schedule(dynamic)") for (int64_t number = 0; number < all->batch * all->heads; number++) \
                head.NAME(number);                                                                                    \
        }                                                                                                             \
    }
#else  // without AVX512-BF16, dalle/kernels/native/attention.py declines
#define ATTENTION(NAME) \
    extern "C" void attention_##NAME(const Sequences*, int) {}
#endif
