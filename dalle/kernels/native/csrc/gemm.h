// Product of a few rows with a matrix: each row of the matrix is read once, in order, as the time goes into reading it.

#pragma once

#include "simd.h"

namespace {

// Register blocking: with 8 matrix rows at a time, this many x rows, likewise with 4 and 3, so that all sums stay in
// registers.
#if defined(__AVX512F__)
constexpr int MAX_X_8 = 3, MAX_X_4 = 6, MAX_X_3 = 8;
#elif defined(__AVX2__)
constexpr int MAX_X_8 = 1, MAX_X_4 = 2, MAX_X_3 = 3;
#else
constexpr int MAX_X_8 = 3, MAX_X_4 = 5, MAX_X_3 = 8;
#endif
constexpr int PREFETCH_ROWS = 8;  // matrix rows to prefetch ahead

// How many numbers of a row one instruction takes, and how their products are accumulated.
template <class X, class W>
struct Dot {
    static constexpr int STEP = LANES;
    typedef Floats Values;
    static Values values(const X* from) { return load(from); }
    static Values weights(const W* from) { return load(from); }
    static Floats add(Floats total, Values weights, Values values) { return total + weights * values; }
};

#if defined(__AVX512BF16__)
template <>
struct Dot<bfloat16, bfloat16> {
    static constexpr int STEP = 2 * LANES;
    typedef __m512bh Values;
    static Values values(const bfloat16* from) { return (__m512bh)read<__m512i>(from); }
    static Values weights(const bfloat16* from) { return (__m512bh)read<__m512i>(from); }
    static Floats add(Floats total, Values weights, Values values) {
        return reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(total), weights, values));
    }
};
#endif

// Where sums go, and what is applied to them first.
template <class Y>
struct Output {
    Y* y;  // [m, n]
    int64_t n;
    const float* scale;   // [n], or null: of int8 weights
    const Y* bias;        // [n], or null
    const float* factor;  // [n], or null: scales the result, as LayerScale
    bool add;             // add to what is in y (the residual stream)

    void operator()(int64_t row, int64_t column, float value) const {
        Y* to = y + row * n + column;
        if (scale) value *= scale[column];
        if (bias) value += to_float(bias[column]);
        if (factor) value *= factor[column];
        store(to, add ? to_float(*to) + value : value);
    }
};

// output = x[m, k] * weight[n, k]^T. Called by all threads of a team.
template <class X, class W, class Y = X>
struct Gemm {
    const X* x;
    const W* weight;
    int64_t m, n, k;
    Output<Y> output;

    template <int N, int M>
    void tile(int64_t row, int64_t column) const {
        typedef Dot<X, W> K;
        const X* from = x + row * k;
        const W* rows_of_w = weight + column * k;
        // Each lane sums its own part of the row; lanes are added at the end only
        Floats totals[N][M] = {};
        for (int64_t j = 0; j < k; j += K::STEP) {
            typename K::Values weights[N];
            for (int c = 0; c < N; c++) {
                weights[c] = K::weights(rows_of_w + c * k + j);
                __builtin_prefetch(rows_of_w + (c + PREFETCH_ROWS) * k + j, 0, 2);  // into L2: 14 % faster than without
            }
            for (int r = 0; r < M; r++) {
                typename K::Values values = K::values(from + r * k + j);
                for (int c = 0; c < N; c++) totals[c][r] = K::add(totals[c][r], weights[c], values);
            }
        }
        for (int c = 0; c < N; c++) {
            float values[M + 3];
            int r = 0;
            for (; r + 4 <= M; r += 4) sum4(totals[c] + r, values + r);
            for (; r < M; r++) values[r] = sum(totals[c][r]);
            for (r = 0; r < M; r++) output(row + r, column + c, values[r]);
        }
    }

    // Dispatch a run-time number of x rows, at most M, to the tile compiled for it.
    template <int N, int M>
    void rows(int64_t count, int64_t row, int64_t column) const {
        if constexpr (M > 0) count == M ? tile<N, M>(row, column) : rows<N, M - 1>(count, row, column);
    }

    // All x rows with N matrix rows, split as evenly as possible into parts that fit in registers.
    template <int N, int MAX_X>
    void columns(int64_t column) const {
        const int64_t parts = (m + MAX_X - 1) / MAX_X;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t first = m * part / parts;
            rows<N, MAX_X>(m * (part + 1) / parts - first, first, column);
        }
    }

    // All x rows with all matrix rows, N at a time.
    template <int N, int MAX_X>
    void blocks() const {
#pragma omp for schedule(static)
        for (int64_t block = 0; block < (n + N - 1) / N; block++) {
            int64_t column = block * N;
            if (column + N <= n)
                columns<N, MAX_X>(column);
            else
                for (; column < n; column++) columns<1, MAX_X>(column);
        }
    }

    void run() const {
        // The fewer x rows, the more matrix rows at a time
        m <= MAX_X_8 ? blocks<8, MAX_X_8>() : m <= MAX_X_4 ? blocks<4, MAX_X_4>() : blocks<3, MAX_X_3>();
    }
};

}  // namespace
