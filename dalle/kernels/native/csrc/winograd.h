// 3x3 convolutions of channels_last images with a quarter of the multiplications (Winograd's F(4x4, 3x3); Lavin and
// Gray 2015, arXiv 1509.09308), and their gradients.
//
// Each 4x4 cells of the result come from 6x6 of the image, which become 36 numbers whose products with the kernel's 36
// are added up over the channels: 36 products of matrices [cells / 16, K] x [K, N]. Around 0, +-1/sqrt(2), +-sqrt(2) and
// infinity the polynomials lose about half a digit less than around Lavin's integers.
//
// B images, H rows, W columns, K channels in, N channels out; K and N are multiples of 2 * LANES. Sums are in float32.

#pragma once

#include <memory>
#include <new>

#include "simd.h"

namespace {
namespace winograd {

constexpr int TILE = 4, SIDE = 6, PLACES = SIDE * SIDE;
constexpr int PANEL = 2 * LANES;  // channels out that are made at a time
#if defined(__AVX512F__)
constexpr int ROWS = 12;  // whose sums stay in registers, for a panel
#else
constexpr int ROWS = 6;
#endif
constexpr int64_t NEAR = 131072;   // numbers that stay in the second cache beside what is streamed
constexpr int64_t SHARED = 512;   // tiles whose numbers are held at once for the gradient of a kernel, at most

// Numbers that are not set, from the start of a line of the cache on.
struct Buffer {
    explicit Buffer(int64_t size) : start(static_cast<float*>(::operator new(size * sizeof(float), LINE))) {}
    Buffer(const Buffer&) = delete;
    ~Buffer() { ::operator delete(start, LINE); }
    float* start;
    static constexpr std::align_val_t LINE{64};
};

// How far apart matrices of so many numbers are put: an odd number of lines, lest they all want the same places of a cache.
inline int64_t spread(int64_t numbers) { return ((numbers + 15) / 16 | 1) * 16; }

constexpr float A2 = 0.5f, B2 = 2.0f;  // squares of the points; their product is 1
constexpr float A1 = 0.70710678118654752f, B1 = 1.41421356237309505f;
constexpr float OF_A = 1 / (2 * A2 * (A2 - B2)), OF_B = 1 / (2 * B2 * (B2 - A2));

// The four numbers in between: at +-1/sqrt(2) and at +-sqrt(2) even powers are the same and odd ones of the other sign.
__attribute__((always_inline)) inline void at_points(Floats even_a, Floats odd_a, Floats even_b, Floats odd_b, Floats* to) {
    to[1] = even_a + odd_a;
    to[2] = even_a - odd_a;
    to[3] = even_b + odd_b;
    to[4] = even_b - odd_b;
}

// Each of the following makes of a few numbers in a line some others; `both` does it along columns, then along rows.

struct OfImage {
    static constexpr int FROM = SIDE, TO = SIDE;
    static __attribute__((always_inline)) inline void line(const Floats* x, Floats* to) {
        const Floats even_a = x[4] - B2 * x[2], odd_a = A1 * x[3] - (A1 * B2) * x[1];
        const Floats even_b = x[4] - A2 * x[2], odd_b = B1 * x[3] - (B1 * A2) * x[1];
        to[0] = x[0] - (A2 + B2) * x[2] + x[4];
        at_points(even_a, odd_a, even_b, odd_b, to);
        to[5] = x[1] - (A2 + B2) * x[3] + x[5];
    }
};

struct OfKernel {
    static constexpr int FROM = 3, TO = SIDE;
    static __attribute__((always_inline)) inline void line(const Floats* x, Floats* to) {
        const Floats even_a = OF_A * (x[0] + A2 * x[2]), odd_a = (OF_A * A1) * x[1];
        const Floats even_b = OF_B * (x[0] + B2 * x[2]), odd_b = (OF_B * B1) * x[1];
        to[0] = x[0];
        at_points(even_a, odd_a, even_b, odd_b, to);
        to[5] = x[2];
    }
};

struct OfSums {
    static constexpr int FROM = SIDE, TO = TILE;
    static __attribute__((always_inline)) inline void line(const Floats* x, Floats* to) {
        const Floats sum_a = x[1] + x[2], less_a = x[1] - x[2], sum_b = x[3] + x[4], less_b = x[3] - x[4];
        to[0] = x[0] + sum_a + sum_b;
        to[1] = A1 * less_a + B1 * less_b;
        to[2] = A2 * sum_a + B2 * sum_b;
        to[3] = (A1 * A2) * less_a + (B1 * B2) * less_b + x[5];
    }
};

// The adjoint of `OfSums`, for the result's gradient.
struct OfResult {
    static constexpr int FROM = TILE, TO = SIDE;
    static __attribute__((always_inline)) inline void line(const Floats* x, Floats* to) {
        const Floats even_a = x[0] + A2 * x[2], odd_a = A1 * x[1] + (A1 * A2) * x[3];
        const Floats even_b = x[0] + B2 * x[2], odd_b = B1 * x[1] + (B1 * B2) * x[3];
        to[0] = x[0];
        at_points(even_a, odd_a, even_b, odd_b, to);
        to[5] = x[3];
    }
};

// The adjoint of `OfKernel`, for the kernel's gradient.
struct ToKernel {
    static constexpr int FROM = SIDE, TO = 3;
    static __attribute__((always_inline)) inline void line(const Floats* x, Floats* to) {
        const Floats sum_a = OF_A * (x[1] + x[2]), sum_b = OF_B * (x[3] + x[4]);
        to[0] = x[0] + sum_a + sum_b;
        to[1] = (OF_A * A1) * (x[1] - x[2]) + (OF_B * B1) * (x[3] - x[4]);
        to[2] = A2 * sum_a + B2 * sum_b + x[5];
    }
};

// A square of read(row, column) becomes one that is given to write(row, column, value).
template <class Way, class Read, class Write>
__attribute__((always_inline)) inline void both(Read read, Write write) {
    Floats half[Way::TO][Way::FROM];
#pragma GCC unroll 6
    for (int column = 0; column < Way::FROM; column++) {
        Floats from[Way::FROM], to[Way::TO];
#pragma GCC unroll 6
        for (int row = 0; row < Way::FROM; row++) from[row] = read(row, column);
        Way::line(from, to);
#pragma GCC unroll 6
        for (int row = 0; row < Way::TO; row++) half[row][column] = to[row];
    }
#pragma GCC unroll 6
    for (int row = 0; row < Way::TO; row++) {
        Floats to[Way::TO];
        Way::line(half[row], to);
#pragma GCC unroll 6
        for (int column = 0; column < Way::TO; column++) write(row, column, to[column]);
    }
}

// to[r, c] (+)= sum over k of x[r * row + k * along] * panel[k * width + c], for M rows and PANEL columns.
template <int M, bool ADD, bool ADJACENT>
inline void tile(const float* x, int64_t row, const float* panel, int64_t width, int64_t count, float* to, int64_t apart) {
    Floats totals[M][2];
#pragma GCC unroll 12
    for (int r = 0; r < M; r++)
        for (int c = 0; c < 2; c++) totals[r][c] = ADD ? load(to + r * apart + c * LANES) : Floats{};
    // Of rows that lie apart a pointer to each third, lest the machine runs out of registers for them
    const float *first = x, *second = x + 3 * row, *third = x + 6 * row, *fourth = x + 9 * row;
    for (int64_t k = 0; k < count; k++) {
        const Floats one = load(panel), other = load(panel + LANES);
        panel += width;
#pragma GCC unroll 12
        for (int r = 0; r < M; r++) {
            const float* from = r < 3 ? first : r < 6 ? second : r < 9 ? third : fourth;
            const float value = ADJACENT ? x[r] : from[r % 3 * row];
            totals[r][0] += one * value;
            totals[r][1] += other * value;
        }
        if (ADJACENT)
            x += row;
        else
            first++, second++, third++, fourth++;
    }
#pragma GCC unroll 12
    for (int r = 0; r < M; r++)
        for (int c = 0; c < 2; c++) save(to + r * apart + c * LANES, totals[r][c]);
}

template <int M, bool ADD, bool ADJACENT>
inline void tiles(int64_t m, const float* x, int64_t row, const float* panel, int64_t width, int64_t count, float* to,
                  int64_t apart) {
    if constexpr (M > 0) {
        if (m == M)
            tile<M, ADD, ADJACENT>(x, row, panel, width, count, to, apart);
        else
            tiles<M - 1, ADD, ADJACENT>(m, x, row, panel, width, count, to, apart);
    }
}

template <class X>
struct Convolution {
    int64_t images, height, width, k, n;

    int64_t down() const { return (height + TILE - 1) / TILE; }
    int64_t across() const { return (width + TILE - 1) / TILE; }
    int64_t count() const { return images * down() * across(); }

    struct Corner {
        int64_t image, top, left;
    };

    // Where the result's cells of a tile begin.
    Corner corner(int64_t tile) const {
        const int64_t rest = tile % (down() * across());
        return {tile / (down() * across()), rest / across() * TILE, rest % across() * TILE};
    }

    // `Way` of a vector of channels of the cells of x [B, H, W, channels] from `before` a tile's first on; none is zero.
    template <class Way>
    void numbers(const X* x, int64_t channels, int64_t tile, int before, float* to, int64_t apart) const {
        const Corner first = corner(tile);
        const int64_t top = first.top - before, left = first.left - before;
        const X* from = x + ((first.image * height + top) * width + left) * channels;
        const auto write = [&](int row, int column, Floats value) { save(to + (row * SIDE + column) * apart, value); };
        if (top >= 0 && left >= 0 && top + Way::FROM <= height && left + Way::FROM <= width)
            both<Way>(
                [&](int row, int column) {
                    const X* here = from + (row * width + column) * channels;
                    if (column >= Way::FROM - TILE) __builtin_prefetch(here + TILE * channels);  // what the next tile adds
                    return load(here);
                },
                write);
        else
            both<Way>(
                [&](int row, int column) {
                    const int64_t i = top + row, j = left + column;
                    const bool there = i >= 0 && i < height && j >= 0 && j < width;
                    return there ? load(from + (row * width + column) * channels) : Floats{};
                },
                write);
    }

    // kernel [3, 3, K, N] to [N / PANEL, PLACES, K, PANEL].
    void weights(const float* kernel, float* to, int threads) const {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
        for (int64_t panel = 0; panel < n / PANEL; panel++)
            for (int64_t i = 0; i < k; i++)
                for (int64_t c = 0; c < PANEL; c += LANES) {
                    const float* from = kernel + i * n + panel * PANEL + c;
                    float* here = to + (panel * PLACES * k + i) * PANEL + c;
                    both<OfKernel>([&](int row, int column) { return load(from + (row * 3 + column) * k * n); },
                                   [&](int row, int column, Floats value) {
                                       save(here + (row * SIDE + column) * k * PANEL, value);
                                   });
                }
    }

    // y [B, H, W, N] = bias + the convolution of x [B, H, W, K], at equal size.
    void forward(const X* x, const float* weights, const float* bias, X* y, int threads) const {
        const int64_t most = std::max<int64_t>(NEAR / (PLACES * k) / ROWS, 1) * ROWS, row = k + LANES;
        const int64_t apart = spread(most * row), sums_apart = spread(most * PANEL);
        const int64_t parts = std::max<int64_t>((count() + most - 1) / most, std::min<int64_t>(threads, count()));
#pragma omp parallel num_threads(threads)
        {
            const Buffer given(PLACES * apart), sums(PLACES * sums_apart);
#pragma omp for schedule(dynamic)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t begin = count() * part / parts, size = count() * (part + 1) / parts - begin;
                for (int64_t t = 0; t < size; t++)
                    for (int64_t c = 0; c < k; c += LANES)
                        numbers<OfImage>(x + c, k, begin + t, 1, given.start + t * row + c, apart);
                for (int64_t panel = 0; panel < n / PANEL; panel++) {
                    for (int place = 0; place < PLACES; place++) {
                        const float* own = weights + (panel * PLACES + place) * k * PANEL;
                        for (int64_t t = 0; t < size; t += ROWS)
                            tiles<ROWS, false, false>(std::min<int64_t>(ROWS, size - t), given.start + place * apart + t * row,
                                                      row, own, PANEL, k, sums.start + place * sums_apart + t * PANEL, PANEL);
                    }
                    for (int64_t c = 0; c < PANEL; c += LANES) {
                        const Floats offset = bias ? load(bias + panel * PANEL + c) : Floats{};
                        for (int64_t t = 0; t < size; t++)
                            put(sums.start + t * PANEL + c, sums_apart, offset, begin + t, y + panel * PANEL + c);
                    }
                }
            }
        }
    }

    // One vector of channels of one tile of the result.
    void put(const float* sums, int64_t apart, Floats bias, int64_t tile, X* y) const {
        const Corner first = corner(tile);
        X* to = y + ((first.image * height + first.top) * width + first.left) * n;
        const auto read = [&](int row, int column) { return load(sums + (row * SIDE + column) * apart); };
        const auto write = [&](int row, int column, Floats value) { save(to + (row * width + column) * n, value + bias); };
        if (first.top + TILE <= height && first.left + TILE <= width)
            both<OfSums>(read, write);
        else
            both<OfSums>(read, [&](int row, int column, Floats value) {
                if (first.top + row < height && first.left + column < width) write(row, column, value);
            });
    }

    // The kernel's gradient [3, 3, K, N] from x [B, H, W, K] and y's [B, H, W, N].
    void backward(const X* x, const X* given, float* to, int threads) const {
        const int64_t most = std::min(count(), std::max<int64_t>(SHARED * 128 / (k + n), 1)), xs = k + LANES, ys = n + LANES;
        const int64_t ours_apart = spread(most * xs), theirs_apart = spread(most * ys);
        const Buffer ours(PLACES * ours_apart), theirs(PLACES * theirs_apart), sums(PLACES * k * n);
        for (int64_t begin = 0; begin < count(); begin += most) {
            const int64_t size = std::min(most, count() - begin);
            const auto add = begin ? tiles<ROWS, true, true> : tiles<ROWS, false, true>;
#pragma omp parallel num_threads(threads)
            {
#pragma omp for schedule(static)
                for (int64_t t = 0; t < size; t++) {
                    for (int64_t c = 0; c < k; c += LANES)
                        numbers<OfImage>(x + c, k, begin + t, 1, ours.start + t * xs + c, ours_apart);
                    for (int64_t c = 0; c < n; c += LANES)
                        numbers<OfResult>(given + c, n, begin + t, 0, theirs.start + t * ys + c, theirs_apart);
                }
#pragma omp for schedule(static) collapse(2)
                for (int place = 0; place < PLACES; place++)
                    for (int64_t c = 0; c < n; c += PANEL)
                        for (int64_t i = 0; i < k; i += ROWS)
                            add(std::min<int64_t>(ROWS, k - i), ours.start + place * ours_apart + i, xs,
                                theirs.start + place * theirs_apart + c, ys, size, sums.start + (place * k + i) * n + c, n);
            }
        }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < k; i++)
            for (int64_t c = 0; c < n; c += LANES) {
                const float* from = sums.start + i * n + c;
                float* here = to + i * n + c;
                both<ToKernel>([&](int row, int column) { return load(from + (row * SIDE + column) * k * n); },
                               [&](int row, int column, Floats value) { save(here + (row * 3 + column) * k * n, value); });
            }
    }
};

}  // namespace winograd
}  // namespace
