// Cross-entropy of rows of logits, and its gradient in their place: all passes over a row hit the CPU's cache.

#pragma once

#include <omp.h>

#include <vector>

#include "simd.h"

namespace {

// Replaces logits [rows, n] by the gradient of the sum of cross-entropy + weight log^2 Z, and returns the cross-entropy
// and log Z of each row. Adds the sum of the gradient over rows to `bias_grad` [n], unless it is null.
template <class X>
void cross_entropy(X* logits, const int64_t* ids, float* nats, float* log_z_out, float* bias_grad, int64_t rows,
                   int64_t n, float weight, int threads) {
    std::vector<float> partial(bias_grad ? threads * n : 0);  // one row per thread
#pragma omp parallel num_threads(threads)
    {
        float* own = bias_grad ? partial.data() + omp_get_thread_num() * n : nullptr;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            X* values = logits + row * n;
            Floats high = load(values), total = {};
            for (int64_t i = LANES; i < n; i += LANES) {
                Floats more = load(values + i);
                high = more > high ? more : high;
            }
            const float highest = max_lane(high), right = to_float(values[ids[row]]);
            for (int64_t i = 0; i < n; i += LANES) {
                Floats low = load(values + i) - highest;
                total += exp_nonpositive(low > 0 ? Floats{} : low);
            }
            // d/dl of (log Z - l_target) + weight log^2 Z = softmax(l) (1 + 2 weight log Z) - onehot(target)
            const float log_z = highest + std::log(sum(total)), factor = 1 + 2 * weight * log_z;
            log_z_out[row] = log_z;
            nats[row] = log_z - right;
            for (int64_t i = 0; i < n; i += LANES) {
                // Above 0 by rounding only: log Z may come out just below a dominating logit
                Floats low = load(values + i) - log_z;
                Floats slope = exp_nonpositive(low > 0 ? Floats{} : low) * factor;
                if (own) store(own + i, load(own + i) + slope);
                store(values + i, slope);
            }
            // The target's own entry last: as 16-bit values, softmax - 1 must be rounded only once
            const float target_grad = std::exp(std::min(right - log_z, 0.0f)) * factor - 1;
            store(values + ids[row], target_grad);
            if (own) own[ids[row]] -= 1;
        }
    }
    // Thread by thread, in a fixed order, so that the sum is reproducible
    for (int64_t t = 0; bias_grad && t < threads; t++)
        for (int64_t i = 0; i < n; i++) bias_grad[i] += partial[t * n + i];
}

}  // namespace
