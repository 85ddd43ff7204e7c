// Vectors as wide as the machine's registers, and the elementwise functions that the kernels need.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));
struct bfloat16 {
    uint16_t bits;
};

// An unaligned load of any vector type.
template <class V>
inline V read(const void* from) {
    V values;
    std::memcpy(&values, from, sizeof(V));
    return values;
}

inline Floats load(const float* from) { return read<Floats>(from); }

inline Floats load(const bfloat16* from) {
    Words words = __builtin_convertvector(read<Halves>(from), Words) << 16;  // bfloat16 is the upper half of a float32
    return read<Floats>(&words);
}

inline Floats load(const int8_t* from) {
#if defined(__AVX512F__)  // gcc's conversion of bytes to floats goes one by one
    return reinterpret_cast<Floats>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(read<__m128i>(from))));
#else
    return __builtin_convertvector(__builtin_convertvector(read<Bytes>(from), Ints), Floats);
#endif
}

inline float sum(Floats values) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(reinterpret_cast<__m512>(values));
#else
    float total = 0;
    for (int i = 0; i < LANES; i++) total += values[i];
    return total;
#endif
}

// The sums of four vectors at once: the shuffles are shared.
inline void sum4(const Floats* values, float* to) {
#if defined(__AVX512F__)
    const __m512* v = reinterpret_cast<const __m512*>(values);
    __m512 first = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    __m512 second = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    __m512 all = _mm512_add_ps(_mm512_shuffle_ps(first, second, 0x44), _mm512_shuffle_ps(first, second, 0xee));
    __m256 half =
        _mm256_add_ps(_mm512_castps512_ps256(all), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
    _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
    for (int i = 0; i < 4; i++) to[i] = sum(values[i]);
#endif
}

inline float max_lane(Floats values) {
    float highest = values[0];
    for (int i = 1; i < LANES; i++) highest = std::max(highest, values[i]);
    return highest;
}

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) {
    uint32_t word = uint32_t(value.bits) << 16;
    return read<float>(&word);
}

inline void store(float* to, float value) { *to = value; }
inline void store(bfloat16* to, float value) {  // rounds to nearest even; nan stays nan
    uint32_t word = read<uint32_t>(&value);
    // Half a unit of the last kept bit is added, or a little less where that bit is even
    to->bits = value != value ? 0x7fc0 : (word + 0x7fff + ((word >> 16) & 1)) >> 16;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof(values)); }
inline void store(bfloat16* to, Floats values) {  // likewise
    Words words = read<Words>(reinterpret_cast<const float*>(&values));
    Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
    Halves halves = __builtin_convertvector(values != values ? Words{} + 0x7fc0 : rounded, Halves);
    std::memcpy(to, &halves, sizeof(halves));
}

// e^x for x <= 0, within 2 ulp: 2^n e^r with |r| <= ln 2 / 2, and e^r by its Taylor series. ln 2 is subtracted in two
// parts, the first of which has few bits, so that r is exact.
inline Floats exp_nonpositive(Floats x) {
    Floats low = x < -87.0f ? Floats{} - 87.0f : x;
    Floats scaled = low * 1.44269504f - 0.5f;
    Ints whole = __builtin_convertvector(scaled, Ints);  // truncation rounds to nearest here, as all are negative
    Floats n = __builtin_convertvector(whole, Floats);
    Floats r = low - n * 0.693359375f + n * 2.12194440e-4f;
    Floats series = r * (1.0f / 5040) + 1.0f / 720;
    series = series * r + 1.0f / 120;
    series = series * r + 1.0f / 24;
    series = series * r + 1.0f / 6;
    series = series * r + 0.5f;
    series = series * r + 1.0f;
    series = series * r + 1.0f;
    Ints power = (whole + 127) << 23;  // the bits of 2^n
    return x < -87.0f ? Floats{} : series * read<Floats>(&power);
}

inline Floats sigmoid(Floats x) {
    // e^-|x| in either case, which cannot overflow
    Floats small = exp_nonpositive(x < 0 ? x : -x);
    return (x < 0 ? small : Floats{} + 1.0f) / (1.0f + small);
}

// GELU, x Phi(x), with an error function that is accurate to 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26).
inline Floats gelu(Floats x) {
    Floats z = (x < 0 ? -x : x) * 0.707106781f;
    Floats t = 1.0f / (1.0f + 0.3275911f * z);
    Floats series = t * 1.061405429f - 1.453152027f;
    series = series * t + 1.421413741f;
    series = series * t - 0.284496736f;
    series = series * t + 0.254829592f;
    Floats tail = 0.5f * series * t * exp_nonpositive(-z * z);  // Phi(-|x|)
    return x * (x < 0 ? tail : 1.0f - tail);
}

}  // namespace
