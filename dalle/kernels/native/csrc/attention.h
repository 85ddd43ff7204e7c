// Attention within whole sequences in bfloat16, with gradients: a head's scores stay in the cache and are made again in
// the backward pass (Dao et al. 2022, arXiv 2205.14135). Products are of pairs of bfloat16, summed in float32.
//
// T tokens, D channels of a head, both in pairs: a word is two bfloat16 that follow each other along the axis that is summed.

#pragma once

#include <omp.h>

#include <vector>

#include "simd.h"

struct Sequences {
    const void *q, *k, *v;     // bfloat16, [B, H, T, D] by the strides of batch, head and token; channels follow each other
    int64_t strides[3][3];     // of q, k, v
    const uint8_t* mask;       // [T, T], 1 where a query sees a key; null: all, or those up to itself
    int64_t causal;
    int64_t batch, heads, tokens, channels;
    float scale;
    void* out;                 // bfloat16 [B, T, H, D]
    float* log_sum;            // [B, H, T], of the exponentials
    const void* given;         // backward: the gradient of out, [B, T, H, D]
    void *of_q, *of_k, *of_v;  // gradients, [B, T, H, D] by `row`
    int64_t row;               // numbers between two tokens of these
};

#if defined(__AVX512BF16__)

namespace {

constexpr int64_t ROWS = 4, BLOCK = 64;  // rows and columns whose sums stay in registers

inline __m512bh pairs(__m512i words) { return (__m512bh)words; }

// Sums of ROWS x 16 N numbers: words a[r * down + k * along] times b[k * width + 16 n ...], for k in [first, last).
template <int N>  // not inlined, so that columns stay in registers
__attribute__((noinline)) void products(const uint32_t* a, int64_t down, int64_t along, const uint32_t* b,
                                        int64_t width, int64_t first, int64_t last, __m512 (*sums)[N]) {
    __m512 own[ROWS][N];
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < N; n++) own[r][n] = _mm512_setzero_ps();
    for (int64_t k = first; k < last; k++) {
        __m512bh columns[N];
        for (int n = 0; n < N; n++) columns[n] = pairs(_mm512_loadu_si512(b + k * width + 16 * n));
        for (int r = 0; r < ROWS; r++) {
            const __m512bh row = pairs(_mm512_set1_epi32(a[r * down + k * along]));
            for (int n = 0; n < N; n++) own[r][n] = _mm512_dpbf16_ps(own[r][n], row, columns[n]);
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < N; n++) sums[r][n] = own[r][n];
}

inline void round(bfloat16* to, __m512 values) {
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(values);
    std::memcpy(to, &halves, sizeof(halves));
}

// e^x for x <= 0, within 3e-7 of itself; nan stays nan.
inline __m512 small_exponential(__m512 x) {
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    const __m512 high = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    const __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), high);
    __m512 series = _mm512_set1_ps(1.0f / 720);
    for (float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
        series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(term));
    return _mm512_scalef_ps(series, n);
}

// 16 x 16 words the other way round.
inline void turn(const uint32_t* from, int64_t down, uint32_t* to, int64_t across) {
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
    for (int i = 0; i < 4; i++) {  // of each fourth of the vectors rows i, 4 + i, 8 + i, 12 + i
        const __m512i one = _mm512_shuffle_i32x4(a[i], a[4 + i], 0x88), two = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88);
        const __m512i three = _mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd), four = _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd);
        b[i] = _mm512_shuffle_i32x4(one, two, 0x88), b[8 + i] = _mm512_shuffle_i32x4(one, two, 0xdd);
        b[4 + i] = _mm512_shuffle_i32x4(three, four, 0x88), b[12 + i] = _mm512_shuffle_i32x4(three, four, 0xdd);
    }
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * across, b[i]);
}

class Head {
   public:
    Head(const Sequences& all) : s(all), words(s.channels / 2), padded((s.tokens + BLOCK - 1) / BLOCK * BLOCK) {
        seen.resize(padded, s.tokens), since.resize(padded, 0);
        for (int64_t i = 0; i < s.tokens; i++) {
            if (s.mask) {
                seen[i] = s.tokens;
                while (seen[i] > 0 && !s.mask[i * s.tokens + seen[i] - 1]) seen[i]--;
            } else if (s.causal) {
                seen[i] = i + 1;
            }
        }
        for (int64_t j = 0; j < s.tokens; j++)
            while (since[j] + 1 < s.tokens && seen[since[j]] <= j) since[j]++;
        for (auto* buffer : {&q, &k, &v, &given}) buffer->resize(padded * words);
        for (auto* buffer : {&across_k, &across_v}) buffer->resize(padded * words);
        for (auto* buffer : {&down_q, &down_k, &down_v, &down_given}) buffer->resize(padded * words);
        row.resize(ROWS * padded / 2);
        scores.resize(ROWS * padded), slopes.resize(ROWS * padded);
    }

    void forward(int64_t number) {
        read(number, 0, s.q, q), read(number, 1, s.k, k), read(number, 2, s.v, v);
        across(k, across_k), down(v, down_v);
        for (int64_t i = 0; i < s.tokens; i += ROWS) {
            const int64_t end = columns(i);
            float factors[ROWS];
            fill(q, across_k, i, end, scores.data());
            for (int64_t r = 0; r < ROWS; r++) {
                float log_sum = 0;
                factors[r] = exponentials(scores.data() + r * padded, i + r, end, row.data() + r * padded / 2, log_sum);
                if (i + r < s.tokens) s.log_sum[number * s.tokens + i + r] = log_sum;
            }
            write(row.data(), padded / 2, 1, down_v, 0, end / 2, i, (bfloat16*)s.out, s.heads * s.channels, number, factors);
        }
    }

    void backward(int64_t number) {
        read(number, 0, s.q, q), read(number, 1, s.k, k), read(number, 2, s.v, v);
        const int64_t between = s.heads * s.channels, at = place(number, between);
        const bfloat16 *made = (const bfloat16*)s.out + at, *wanted = (const bfloat16*)s.given + at;
        copy(wanted, between, given);
        across(k, across_k), across(v, across_v), down(q, down_q), down(k, down_k), down(given, down_given);
        shares.resize(padded / 2 * padded), changes.resize(padded / 2 * padded);
        if (s.mask) std::fill(shares.begin(), shares.end(), 0), std::fill(changes.begin(), changes.end(), 0);
        for (int64_t i = 0; i < s.tokens; i += ROWS) {
            const int64_t end = columns(i);
            float log_sums[ROWS] = {}, means[ROWS] = {};
            for (int64_t r = 0; r < std::min(ROWS, s.tokens - i); r++) {
                const int64_t begin = (i + r) * between;
                log_sums[r] = s.log_sum[number * s.tokens + i + r];
                __builtin_prefetch(made + begin + 8 * between);
                for (int64_t d = 0; d < s.channels; d += LANES)
                    means[r] += sum(load(made + begin + d) * load(wanted + begin + d));
            }
            fill(q, across_k, i, end, scores.data());
            fill(given, across_v, i, end, slopes.data());
            for (int64_t r = 0; r < ROWS; r += 2) slopes_of(i, r, end, log_sums + r, means + r);
            write(row.data(), padded / 2, 1, down_k, 0, end / 2, i, (bfloat16*)s.of_q, s.row, number);
        }
        for (int64_t j = 0; j < s.tokens; j += ROWS) {
            const int64_t first = since[j] / 2, last = (s.tokens + 1) / 2;
            write(shares.data() + j, 1, padded, down_given, first, last, j, (bfloat16*)s.of_v, s.row, number);
            write(changes.data() + j, 1, padded, down_q, first, last, j, (bfloat16*)s.of_k, s.row, number);
        }
    }

   private:
    const Sequences& s;
    const int64_t words, padded;  // words of a token; tokens, with rows of zeros behind the last
    std::vector<int64_t> seen, since;  // keys up to the last that a query sees; the first query that sees up to a key
    std::vector<uint32_t> q, k, v, given;                          // [padded, words] along channels
    std::vector<uint32_t> across_k, across_v;                      // [words, padded], the same the other way
    std::vector<uint32_t> down_q, down_k, down_v, down_given;      // [padded / 2, D], along tokens
    std::vector<uint32_t> row, shares, changes;                    // of ROWS queries; [padded / 2, padded] along queries
    std::vector<float> scores, slopes;                             // [ROWS, padded]

    int64_t place(int64_t number, int64_t between) const {
        return number / s.heads * s.tokens * between + number % s.heads * s.channels;
    }

    void read(int64_t number, int which, const void* from, std::vector<uint32_t>& to) const {
        const int64_t* stride = s.strides[which];
        copy((const bfloat16*)from + number / s.heads * stride[0] + number % s.heads * stride[1], stride[2], to);
    }

    void copy(const bfloat16* from, int64_t stride, std::vector<uint32_t>& to) const {
        for (int64_t t = 0; t < s.tokens; t++) std::memcpy(&to[t * words], from + t * stride, words * 4);
    }

    void across(const std::vector<uint32_t>& from, std::vector<uint32_t>& to) const {
        for (int64_t t = 0; t < padded; t += 16)
            for (int64_t w = 0; w < words; w += 16) turn(&from[t * words + w], words, &to[w * padded + t], padded);
    }

    void down(const std::vector<uint32_t>& from, std::vector<uint32_t>& to) const {
        for (int64_t t = 0; t < padded; t += 2)
            for (int64_t w = 0; w < words; w += 8) {
                const __m512i one = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)&from[t * words + w]));
                const __m512i other = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)&from[(t + 1) * words + w]));
                _mm512_storeu_si512(&to[t * words + 2 * w], _mm512_or_si512(one, _mm512_slli_epi32(other, 16)));
            }
    }

    // Columns that ROWS queries need, in whole halves of blocks.
    int64_t columns(int64_t i) const {
        int64_t last = 0;
        for (int64_t r = i; r < std::min(i + ROWS, s.tokens); r++) last = std::max(last, seen[r]);
        return (last + BLOCK / 2 - 1) / (BLOCK / 2) * (BLOCK / 2);
    }

    void fill(const std::vector<uint32_t>& rows, const std::vector<uint32_t>& b, int64_t i, int64_t end, float* to) const {
        int64_t j = 0;
        for (; j + BLOCK <= end; j += BLOCK) block<4>(rows, b, i, j, to);
        if (j < end) block<2>(rows, b, i, j, to);
    }

    template <int N>
    void block(const std::vector<uint32_t>& rows, const std::vector<uint32_t>& b, int64_t i, int64_t j, float* to) const {
        __m512 sums[ROWS][N];
        products<N>(&rows[i * words], words, 1, &b[j], padded, 0, words, sums);
        for (int r = 0; r < ROWS; r++)
            for (int n = 0; n < N; n++) _mm512_storeu_ps(to + r * padded + j + 16 * n, sums[r][n]);
    }

    // Which of the keys j and on a query sees, a bit each.
    __mmask16 visible(int64_t token, int64_t j) const {
        const int64_t last = token < s.tokens ? seen[token] : 0;
        uint32_t kept = j + 16 <= last ? 0xffff : j >= last ? 0 : (1u << (last - j)) - 1;
        if (s.mask && kept) kept &= _mm_test_epi8_mask(seeing(token, j, kept), _mm_set1_epi8(-1));
        return kept;
    }

    __m128i seeing(int64_t token, int64_t j, __mmask16 there) const {
        return _mm_maskz_loadu_epi8(there, s.mask + token * s.tokens + j);
    }

    // Exponentials of a query's scores less the largest, as words; returns one over their sum, and tells its logarithm.
    float exponentials(const float* own, int64_t token, int64_t end, uint32_t* to, float& log_sum) const {
        __m512 high = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
        const __m512 scale = _mm512_set1_ps(s.scale);
        for (int64_t j = 0; j < end; j += 16) high = _mm512_mask_max_ps(high, visible(token, j), high, _mm512_loadu_ps(own + j));
        const float most = _mm512_reduce_max_ps(high);
        const __m512 less = _mm512_set1_ps(most * s.scale);
        for (int64_t j = 0; j < end; j += 16) {
            const __m512 low = _mm512_fmsub_ps(_mm512_loadu_ps(own + j), scale, less);
            const __m512 value = _mm512_maskz_mov_ps(visible(token, j), small_exponential(low));
            total = _mm512_add_ps(total, value);
            round((bfloat16*)to + j, value);
        }
        const float sum = _mm512_reduce_add_ps(total);
        log_sum = most * s.scale + std::log(sum);
        return sum > 0 || sum != sum ? 1 / sum : 0;  // of a row behind the last
    }

    // Shares and gradients of scores of queries i + r and the next: as words of both, and the latter along themselves.
    void slopes_of(int64_t i, int64_t r, int64_t end, const float* log_sums, const float* means) {
        const __m512 scale = _mm512_set1_ps(s.scale);
        const int64_t pair = (i + r) / 2 * padded;
        for (int64_t j = 0; j < end; j += 16) {
            __m512i share[2], slope[2];
            for (int64_t one = 0; one < 2; one++) {
                const int64_t at = (r + one) * padded + j;
                const __m512 low = _mm512_fmsub_ps(_mm512_loadu_ps(&scores[at]), scale, _mm512_set1_ps(log_sums[one]));
                const __m512 value = _mm512_maskz_mov_ps(visible(i + r + one, j), small_exponential(low));
                const __m512 change = _mm512_sub_ps(_mm512_loadu_ps(&slopes[at]), _mm512_set1_ps(means[one]));
                share[one] = halves(value), slope[one] = halves(_mm512_mul_ps(_mm512_mul_ps(value, change), scale));
                _mm256_storeu_si256((__m256i*)((bfloat16*)row.data() + at), _mm512_cvtepi32_epi16(slope[one]));
            }
            _mm512_storeu_si512(&shares[pair + j], _mm512_or_si512(share[0], _mm512_slli_epi32(share[1], 16)));
            _mm512_storeu_si512(&changes[pair + j], _mm512_or_si512(slope[0], _mm512_slli_epi32(slope[1], 16)));
        }
    }

    static __m512i halves(__m512 values) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(values)); }

    // ROWS rows of a product with b [K, D] to tokens i and on of a head.
    void write(const uint32_t* a, int64_t along_rows, int64_t along, const std::vector<uint32_t>& b, int64_t first,
               int64_t last, int64_t i, bfloat16* to, int64_t stride, int64_t number, const float* factors = nullptr) const {
        to += place(number, stride);
        for (int64_t d = 0; d < s.channels; d += 16) {
            if (d + 64 <= s.channels) {
                part<4>(a, along_rows, along, &b[d], first, last, i, to + d, stride, factors);
                d += 48;
            } else {
                part<1>(a, along_rows, along, &b[d], first, last, i, to + d, stride, factors);
            }
        }
    }

    template <int N>
    void part(const uint32_t* a, int64_t along_rows, int64_t along, const uint32_t* b, int64_t first, int64_t last,
              int64_t i, bfloat16* to, int64_t stride, const float* factors) const {
        __m512 sums[ROWS][N];
        products<N>(a, along_rows, along, b, s.channels, first, last, sums);
        for (int64_t r = 0; r < ROWS && i + r < s.tokens; r++)
            for (int n = 0; n < N; n++)
                round(to + (i + r) * stride + 16 * n, factors ? _mm512_mul_ps(sums[r][n], _mm512_set1_ps(factors[r])) : sums[r][n]);
    }
};

}  // namespace

#define SEQUENCES(NAME)                                                           \
    extern "C" void sequences_##NAME(const Sequences* all, int threads) {         \
        _Pragma("omp parallel num_threads(threads)") {                            \
            Head head(*all);                                                      \
            _Pragma("omp for schedule(dynamic)")                                  \
            for (int64_t number = 0; number < all->batch * all->heads; number++) head.NAME(number); \
        }                                                                         \
    }
#else  // torch does it
#define SEQUENCES(NAME) \
    extern "C" void sequences_##NAME(const Sequences*, int) {}
#endif
