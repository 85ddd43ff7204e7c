// The product of few rows with a matrix, whose every row is read once, as it lies in memory.

#pragma once

#include "simd.h"

namespace {

// With 8 rows of the matrix at a time so many of the other factor, with 4, and with 3: their sums stay in registers.
#if defined(__AVX512F__)
constexpr int WITH_8 = 3, WITH_4 = 6, WITH_3 = 8;
#elif defined(__AVX2__)
constexpr int WITH_8 = 1, WITH_4 = 2, WITH_3 = 3;
#else
constexpr int WITH_8 = 3, WITH_4 = 5, WITH_3 = 8;
#endif
constexpr int AHEAD = 8;  // rows of the matrix that are asked for before they are needed

// How many numbers of a row are taken at a time, and how their products are added up.
template <class X, class W>
struct Kind {
    static constexpr int STEP = LANES;
    typedef Floats Values;
    static Values values(const X* from) { return load(from); }
    static Values weights(const W* from) { return load(from); }
    static Floats add(Floats total, Values weights, Values values) { return total + weights * values; }
};

#if defined(__AVX512BF16__)
template <>
struct Kind<bfloat16, bfloat16> {
    static constexpr int STEP = 2 * LANES;
    typedef __m512bh Values;
    static Values values(const bfloat16* from) { return (__m512bh)read<__m512i>(from); }
    static Values weights(const bfloat16* from) { return (__m512bh)read<__m512i>(from); }
    static Floats add(Floats total, Values weights, Values values) {
        return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(total), weights, values));
    }
};
#endif

// Where the sums of a product go.
template <class Y>
struct Output {
    Y* y;                // [m, n]
    int64_t n;
    const float* scale;  // [n], or null: of the weights
    const Y* bias;       // [n], or null
    const float* factor; // [n], or null: of the result
    bool add;            // to what is there

    void operator()(int64_t row, int64_t column, float value) const {
        Y* to = y + row * n + column;
        if (scale) value *= scale[column];
        if (bias) value += to_float(bias[column]);
        if (factor) value *= factor[column];
        store(to, add ? to_float(*to) + value : value);
    }
};

// output = x[m, k] * weight[n, k]. To be run by a team of threads.
template <class X, class W, class Y = X>
struct Product {
    const X* x;
    const W* weight;
    int64_t m, n, k;
    Output<Y> output;

    template <int N, int M>
    void tile(int64_t row, int64_t column) const {
        typedef Kind<X, W> K;
        const X* from = x + row * k;
        const W* with = weight + column * k;
        Floats totals[N][M] = {};
        for (int64_t j = 0; j < k; j += K::STEP) {
            typename K::Values weights[N];
            for (int c = 0; c < N; c++) {
                weights[c] = K::weights(with + c * k + j);
                __builtin_prefetch(with + (c + AHEAD) * k + j, 0, 2);  // into the second cache: a seventh faster
            }
            for (int r = 0; r < M; r++) {
                typename K::Values values = K::values(from + r * k + j);
                for (int c = 0; c < N; c++) totals[c][r] = K::add(totals[c][r], weights[c], values);
            }
        }
        for (int c = 0; c < N; c++) {
            float values[M + 3];
            int r = 0;
            for (; r + 4 <= M; r += 4) four(totals[c] + r, values + r);
            for (; r < M; r++) values[r] = sum(totals[c][r]);
            for (r = 0; r < M; r++) output(row + r, column + c, values[r]);
        }
    }

    template <int N, int M>
    void rows(int64_t count, int64_t row, int64_t column) const {
        if constexpr (M > 0) count == M ? tile<N, M>(row, column) : rows<N, M - 1>(count, row, column);
    }

    // All rows of N columns, in nearly equal parts of up to MOST, as many as the registers hold sums of.
    template <int N, int MOST>
    void columns(int64_t column) const {
        const int64_t parts = (m + MOST - 1) / MOST;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t first = m * part / parts;
            rows<N, MOST>(m * (part + 1) / parts - first, first, column);
        }
    }

    // All rows and columns, N columns at a time.
    template <int N, int MOST>
    void blocks() const {
#pragma omp for schedule(static)
        for (int64_t block = 0; block < (n + N - 1) / N; block++) {
            int64_t column = block * N;
            if (column + N <= n)
                columns<N, MOST>(column);
            else
                for (; column < n; column++) columns<1, MOST>(column);
        }
    }

    void run() const {
        m <= WITH_8 ? blocks<8, WITH_8>() : m <= WITH_4 ? blocks<4, WITH_4>() : blocks<3, WITH_3>();
    }
};

}  // namespace
