// 3x3 convolutions of channels_last images by Winograd's F(4x4, 3x3), which takes a quarter of the multiplications, and
// their gradients. After Lavin and Gray 2015, arXiv 1509.09308, whose names are used here:
//
//   Y = A^T [ sum over channels of (G g G^T) * (B^T d B) ] A
//
// d is a tile of 6x6 input pixels, g a 3x3 filter, Y the 4x4 output pixels. U = G g G^T and V = B^T d B have 36 values
// each. The sum over channels makes 36 matrix products M = V U, each [tiles, K] x [K, N], one for each value.
//
// The interpolation points are 0, +-1/sqrt(2), +-sqrt(2) and infinity: they lose about half a digit less than the
// paper's integers (0, +-1, +-2).
//
// B images, H rows, W columns, K input channels, N output channels; K and N are multiples of 2 * LANES. All in float32.

#pragma once

#include <memory>
#include <new>

#include "simd.h"

namespace {
namespace winograd {

constexpr int OUT_TILE = 4, ALPHA = 6, POINTS = ALPHA * ALPHA;  // ALPHA = 4 + 3 - 1, the input tile
constexpr int PANEL = 2 * LANES;                                // output channels computed together
#if defined(__AVX512F__)
constexpr int ROWS = 12;  // tiles whose sums for a panel stay in registers
#else
constexpr int ROWS = 6;
#endif
constexpr int64_t L2_FLOATS = 131072;  // how much of V stays in L2 beside the U that streams through
constexpr int64_t MAX_TILES = 512;     // tiles transformed at once for the filter's gradient, at 128 channels in all

// Uninitialized floats, aligned to a cache line.
struct Buffer {
    explicit Buffer(int64_t size) : start(static_cast<float*>(::operator new(size * sizeof(float), LINE))) {}
    Buffer(const Buffer&) = delete;
    ~Buffer() { ::operator delete(start, LINE); }
    float* start;
    static constexpr std::align_val_t LINE{64};
};

// The distance at which to place matrices of this size: an odd number of cache lines, as at powers of two all of them
// would compete for the same sets of the cache.
inline int64_t odd_lines(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }

// Points a = 1/sqrt(2) and b = sqrt(2), their squares, and the factors of G at +-a and +-b
constexpr float PA2 = 0.5f, PB2 = 2.0f;  // PA2 * PB2 = 1
constexpr float PA = 0.70710678118654752f, PB = 1.41421356237309505f;
constexpr float G_A = 1 / (2 * PA2 * (PA2 - PB2)), G_B = 1 / (2 * PB2 * (PB2 - PA2));

// Values at +-a and +-b: the even terms of the polynomial agree, the odd ones have opposite signs.
__attribute__((always_inline)) inline void at_points(Floats even_a, Floats odd_a, Floats even_b, Floats odd_b,
                                                     Floats* to) {
    to[1] = even_a + odd_a;
    to[2] = even_a - odd_a;
    to[3] = even_b + odd_b;
    to[4] = even_b - odd_b;
}

// 1-D transforms by the matrices B^T, G and A^T and by their adjoints; `transform_2d` applies them to columns, then
// rows.

// B^T, of input tiles.
struct InputTransform {
    static constexpr int INPUTS = ALPHA, OUTPUTS = ALPHA;
    static __attribute__((always_inline)) inline void apply(const Floats* x, Floats* to) {
        const Floats even_a = x[4] - PB2 * x[2], odd_a = PA * x[3] - (PA * PB2) * x[1];
        const Floats even_b = x[4] - PA2 * x[2], odd_b = PB * x[3] - (PB * PA2) * x[1];
        to[0] = x[0] - (PA2 + PB2) * x[2] + x[4];
        at_points(even_a, odd_a, even_b, odd_b, to);
        to[5] = x[1] - (PA2 + PB2) * x[3] + x[5];
    }
};

// G, of filters.
struct FilterTransform {
    static constexpr int INPUTS = 3, OUTPUTS = ALPHA;
    static __attribute__((always_inline)) inline void apply(const Floats* x, Floats* to) {
        const Floats even_a = G_A * (x[0] + PA2 * x[2]), odd_a = (G_A * PA) * x[1];
        const Floats even_b = G_B * (x[0] + PB2 * x[2]), odd_b = (G_B * PB) * x[1];
        to[0] = x[0];
        at_points(even_a, odd_a, even_b, odd_b, to);
        to[5] = x[2];
    }
};

// A^T, of the products.
struct OutputTransform {
    static constexpr int INPUTS = ALPHA, OUTPUTS = OUT_TILE;
    static __attribute__((always_inline)) inline void apply(const Floats* x, Floats* to) {
        const Floats sum_a = x[1] + x[2], less_a = x[1] - x[2], sum_b = x[3] + x[4], less_b = x[3] - x[4];
        to[0] = x[0] + sum_a + sum_b;
        to[1] = PA * less_a + PB * less_b;
        to[2] = PA2 * sum_a + PB2 * sum_b;
        to[3] = (PA * PA2) * less_a + (PB * PB2) * less_b + x[5];
    }
};

// A, the adjoint of A^T, of output gradients.
struct OutputGradTransform {
    static constexpr int INPUTS = OUT_TILE, OUTPUTS = ALPHA;
    static __attribute__((always_inline)) inline void apply(const Floats* x, Floats* to) {
        const Floats even_a = x[0] + PA2 * x[2], odd_a = PA * x[1] + (PA * PA2) * x[3];
        const Floats even_b = x[0] + PB2 * x[2], odd_b = PB * x[1] + (PB * PB2) * x[3];
        to[0] = x[0];
        at_points(even_a, odd_a, even_b, odd_b, to);
        to[5] = x[3];
    }
};

// G^T, the adjoint of G, to filter gradients.
struct FilterGradTransform {
    static constexpr int INPUTS = ALPHA, OUTPUTS = 3;
    static __attribute__((always_inline)) inline void apply(const Floats* x, Floats* to) {
        const Floats sum_a = G_A * (x[1] + x[2]), sum_b = G_B * (x[3] + x[4]);
        to[0] = x[0] + sum_a + sum_b;
        to[1] = (G_A * PA) * (x[1] - x[2]) + (G_B * PB) * (x[3] - x[4]);
        to[2] = PA2 * sum_a + PB2 * sum_b + x[5];
    }
};

// T X T^T for a square X given by read(row, column); the result goes to write(row, column, value).
template <class Transform, class Read, class Write>
__attribute__((always_inline)) inline void transform_2d(Read read, Write write) {
    Floats half[Transform::OUTPUTS][Transform::INPUTS];
#pragma GCC unroll 6
    for (int column = 0; column < Transform::INPUTS; column++) {
        Floats from[Transform::INPUTS], to[Transform::OUTPUTS];
#pragma GCC unroll 6
        for (int row = 0; row < Transform::INPUTS; row++) from[row] = read(row, column);
        Transform::apply(from, to);
#pragma GCC unroll 6
        for (int row = 0; row < Transform::OUTPUTS; row++) half[row][column] = to[row];
    }
#pragma GCC unroll 6
    for (int row = 0; row < Transform::OUTPUTS; row++) {
        Floats to[Transform::OUTPUTS];
        Transform::apply(half[row], to);
#pragma GCC unroll 6
        for (int column = 0; column < Transform::OUTPUTS; column++) write(row, column, to[column]);
    }
}

// out[r, c] (+)= sum over k of x[r, k] * panel[k * width + c], for M rows and PANEL columns. x[r, k] is at r * row + k,
// or, if ADJACENT, at k * row + r.
template <int M, bool ADD, bool ADJACENT>
inline void tile(const float* x, int64_t row, const float* panel, int64_t width, int64_t count, float* to,
                 int64_t stride) {
    Floats totals[M][2];
#pragma GCC unroll 12
    for (int r = 0; r < M; r++)
        for (int c = 0; c < 2; c++) totals[r][c] = ADD ? load(to + r * stride + c * LANES) : Floats{};
    // A base pointer for every three rows, as one per row would run out of registers
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
        for (int c = 0; c < 2; c++) store(to + r * stride + c * LANES, totals[r][c]);
}

template <int M, bool ADD, bool ADJACENT>
inline void tiles(int64_t m, const float* x, int64_t row, const float* panel, int64_t width, int64_t count, float* to,
                  int64_t stride) {
    if constexpr (M > 0) {
        if (m == M)
            tile<M, ADD, ADJACENT>(x, row, panel, width, count, to, stride);
        else
            tiles<M - 1, ADD, ADJACENT>(m, x, row, panel, width, count, to, stride);
    }
}

template <class X>
struct Convolution {
    int64_t images, height, width, k, n;

    int64_t tile_rows() const { return (height + OUT_TILE - 1) / OUT_TILE; }
    int64_t tile_columns() const { return (width + OUT_TILE - 1) / OUT_TILE; }
    int64_t tile_count() const { return images * tile_rows() * tile_columns(); }

    struct Origin {
        int64_t image, top, left;
    };

    // The output pixel where a tile begins.
    Origin origin(int64_t tile) const {
        const int64_t rest = tile % (tile_rows() * tile_columns());
        return {tile / (tile_rows() * tile_columns()), rest / tile_columns() * OUT_TILE,
                rest % tile_columns() * OUT_TILE};
    }

    // Transform one vector of channels of the tile of x [B, H, W, channels] that begins `before` pixels above and to
    // the left of the tile's output; pixels outside the image are zero.
    template <class Transform>
    void transform_tile(const X* x, int64_t channels, int64_t tile, int before, float* to, int64_t stride) const {
        const Origin first = origin(tile);
        const int64_t top = first.top - before, left = first.left - before;
        const X* from = x + ((first.image * height + top) * width + left) * channels;
        const auto write = [&](int row, int column, Floats value) {
            store(to + (row * ALPHA + column) * stride, value);
        };
        if (top >= 0 && left >= 0 && top + Transform::INPUTS <= height && left + Transform::INPUTS <= width)
            transform_2d<Transform>(
                [&](int row, int column) {
                    const X* here = from + (row * width + column) * channels;
                    // The columns that the next tile adds
                    if (column >= Transform::INPUTS - OUT_TILE) __builtin_prefetch(here + OUT_TILE * channels);
                    return load(here);
                },
                write);
        else
            transform_2d<Transform>(
                [&](int row, int column) {
                    const int64_t i = top + row, j = left + column;
                    const bool inside = i >= 0 && i < height && j >= 0 && j < width;
                    return inside ? load(from + (row * width + column) * channels) : Floats{};
                },
                write);
    }

    // U: filters [3, 3, K, N] to [N / PANEL, POINTS, K, PANEL], the order in which `forward` reads them.
    void transform_filters(const float* kernel, float* to, int threads) const {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
        for (int64_t panel = 0; panel < n / PANEL; panel++)
            for (int64_t i = 0; i < k; i++)
                for (int64_t c = 0; c < PANEL; c += LANES) {
                    const float* from = kernel + i * n + panel * PANEL + c;
                    float* here = to + (panel * POINTS * k + i) * PANEL + c;
                    transform_2d<FilterTransform>(
                        [&](int row, int column) { return load(from + (row * 3 + column) * k * n); },
                        [&](int row, int column, Floats value) {
                            store(here + (row * ALPHA + column) * k * PANEL, value);
                        });
                }
    }

    // y [B, H, W, N] = bias + the convolution of x [B, H, W, K], with padding 1. Each thread takes as many tiles as
    // keep V in L2, and runs all panels of U over them.
    void forward(const X* x, const float* u, const float* bias, X* y, int threads) const {
        const int64_t chunk = std::max<int64_t>(L2_FLOATS / (POINTS * k) / ROWS, 1) * ROWS, row = k + LANES;
        const int64_t v_stride = odd_lines(chunk * row), m_stride = odd_lines(chunk * PANEL);
        const int64_t parts =
            std::max<int64_t>((tile_count() + chunk - 1) / chunk, std::min<int64_t>(threads, tile_count()));
#pragma omp parallel num_threads(threads)
        {
            const Buffer v(POINTS * v_stride), m(POINTS * m_stride);
#pragma omp for schedule(dynamic)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t begin = tile_count() * part / parts, size = tile_count() * (part + 1) / parts - begin;
                for (int64_t t = 0; t < size; t++)
                    for (int64_t c = 0; c < k; c += LANES)
                        transform_tile<InputTransform>(x + c, k, begin + t, 1, v.start + t * row + c, v_stride);
                for (int64_t panel = 0; panel < n / PANEL; panel++) {
                    for (int point = 0; point < POINTS; point++) {
                        const float* own = u + (panel * POINTS + point) * k * PANEL;
                        for (int64_t t = 0; t < size; t += ROWS)
                            tiles<ROWS, false, false>(std::min<int64_t>(ROWS, size - t),
                                                      v.start + point * v_stride + t * row, row, own, PANEL, k,
                                                      m.start + point * m_stride + t * PANEL, PANEL);
                    }
                    for (int64_t c = 0; c < PANEL; c += LANES) {
                        const Floats offset = bias ? load(bias + panel * PANEL + c) : Floats{};
                        for (int64_t t = 0; t < size; t++)
                            store_output(m.start + t * PANEL + c, m_stride, offset, begin + t, y + panel * PANEL + c);
                    }
                }
            }
        }
    }

    // Y = A^T M A for one vector of channels of one tile, plus the bias.
    void store_output(const float* m, int64_t stride, Floats bias, int64_t tile, X* y) const {
        const Origin first = origin(tile);
        X* to = y + ((first.image * height + first.top) * width + first.left) * n;
        const auto read = [&](int row, int column) { return load(m + (row * ALPHA + column) * stride); };
        const auto write = [&](int row, int column, Floats value) {
            store(to + (row * width + column) * n, value + bias);
        };
        if (first.top + OUT_TILE <= height && first.left + OUT_TILE <= width)
            transform_2d<OutputTransform>(read, write);
        else
            transform_2d<OutputTransform>(read, [&](int row, int column, Floats value) {
                if (first.top + row < height && first.left + column < width) write(row, column, value);
            });
    }

    // The filter's gradient [3, 3, K, N] from x [B, H, W, K] and y's gradient [B, H, W, N]: G^T [V^T (A dY A^T)] G,
    // summed over tiles.
    void backward(const X* x, const X* y_grad, float* to, int threads) const {
        const int64_t chunk = std::min(tile_count(), std::max<int64_t>(MAX_TILES * 128 / (k + n), 1)), xs = k + LANES,
                      ys = n + LANES;
        const int64_t v_stride = odd_lines(chunk * xs), dy_stride = odd_lines(chunk * ys);
        const Buffer v(POINTS * v_stride), dy(POINTS * dy_stride), grad(POINTS * k * n);
        for (int64_t begin = 0; begin < tile_count(); begin += chunk) {
            const int64_t size = std::min(chunk, tile_count() - begin);
            const auto add = begin ? tiles<ROWS, true, true> : tiles<ROWS, false, true>;
#pragma omp parallel num_threads(threads)
            {
#pragma omp for schedule(static)
                for (int64_t t = 0; t < size; t++) {
                    for (int64_t c = 0; c < k; c += LANES)
                        transform_tile<InputTransform>(x + c, k, begin + t, 1, v.start + t * xs + c, v_stride);
                    for (int64_t c = 0; c < n; c += LANES)
                        transform_tile<OutputGradTransform>(y_grad + c, n, begin + t, 0, dy.start + t * ys + c,
                                                            dy_stride);
                }
#pragma omp for schedule(static) collapse(2)
                for (int point = 0; point < POINTS; point++)
                    for (int64_t c = 0; c < n; c += PANEL)
                        for (int64_t i = 0; i < k; i += ROWS)
                            add(std::min<int64_t>(ROWS, k - i), v.start + point * v_stride + i, xs,
                                dy.start + point * dy_stride + c, ys, size, grad.start + (point * k + i) * n + c, n);
            }
        }
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int64_t i = 0; i < k; i++)
            for (int64_t c = 0; c < n; c += LANES) {
                const float* from = grad.start + i * n + c;
                float* here = to + i * n + c;
                transform_2d<FilterGradTransform>(
                    [&](int row, int column) { return load(from + (row * ALPHA + column) * k * n); },
                    [&](int row, int column, Floats value) { store(here + (row * 3 + column) * k * n, value); });
            }
    }
};

}  // namespace winograd
}  // namespace
