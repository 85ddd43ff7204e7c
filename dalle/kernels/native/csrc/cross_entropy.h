// Cross-entropy of rows of logits and its gradient, made in their place: each row is read while it is in the cache.

#pragma once

#include <omp.h>

#include <vector>

#include "simd.h"

namespace {

// Logits [rows, n], in their place the gradient of the sum of cross-entropy + weight log^2 Z. Adds to `of_bias` [n], if
// it is there, the gradient's sum over rows.
template <class X>
void cross_entropy(X* logits, const int64_t* ids, float* nats, float* log_z, float* of_bias, int64_t rows, int64_t n,
                   float weight, int threads) {
    std::vector<float> partial(of_bias ? threads * n : 0);
#pragma omp parallel num_threads(threads)
    {
        float* own = of_bias ? partial.data() + omp_get_thread_num() * n : nullptr;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            X* values = logits + row * n;
            Floats high = load(values), total = {};
            for (int64_t i = LANES; i < n; i += LANES) {
                Floats more = load(values + i);
                high = more > high ? more : high;
            }
            const float most = largest(high), right = to_float(values[ids[row]]);
            for (int64_t i = 0; i < n; i += LANES) {
                Floats low = load(values + i) - most;
                total += exponential(low > 0 ? Floats{} : low);
            }
            const float whole = most + std::log(sum(total)), factor = 1 + 2 * weight * whole;
            log_z[row] = whole;
            nats[row] = whole - right;
            for (int64_t i = 0; i < n; i += LANES) {
                Floats low = load(values + i) - whole;
                Floats slope = exponential(low > 0 ? Floats{} : low) * factor;
                if (own) save(own + i, load(own + i) + slope);
                save(values + i, slope);
            }
            const float share = std::exp(std::min(right - whole, 0.0f)) * factor - 1;
            store(values + ids[row], share);
            if (own) own[ids[row]] -= 1;
        }
    }
    for (int64_t t = 0; of_bias && t < threads; t++)  // one after the other, so that a sum is the same each time
        for (int64_t i = 0; i < n; i++) of_bias[i] += partial[t * n + i];
}

}  // namespace
