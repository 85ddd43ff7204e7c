// Sampling one token per row from its logits: temperature, top-k, nucleus, inverse CDF; without sorting all logits.

#pragma once

#include <functional>
#include <vector>

#include "simd.h"

namespace {

// Samples row after row; its members are buffers that are reused.
class Sampler {
 public:
    explicit Sampler(int64_t vocabulary)
        : vocabulary_(vocabulary), scaled_((vocabulary + LANES - 1) / LANES * LANES), weights_(scaled_.size()) {}

    // `top_k` is from 1 to the vocabulary, `top_p` in (0, 1]; at the upper ends all tokens stay. Returns -1 if the
    // logits are not finite.
    int64_t sample(const float* logits, double uniform, float temperature, int64_t top_k, double top_p) {
        scale(logits, temperature);
        // In double, like all sums over the vocabulary: float would lose the small tokens
        double all = 0;
        for (size_t i = 0; i < weights_.size(); i += LANES) all += sum(load(&weights_[i]));
        if (!(all > 0)) return -1;  // nan or infinity: the tokens have no order
        if (top_k < vocabulary_) {
            collect(threshold(top_k));
            keep_largest(top_k);
            // The nucleus is taken of what top-k leaves, as in the plain version
            if (top_p < 1) keep_largest(nucleus(top_p * mass()));
        } else if (top_p < 1) {
            collect(threshold(std::min(NUCLEUS_GUESS, vocabulary_)));  // nearly always contains the nucleus
            if (mass() < top_p * all) collect(-INFINITY);
            keep_largest(nucleus(top_p * all));
        } else {
            collect(-INFINITY);
        }
        return inverse_cdf(uniform);
    }

 private:
    static constexpr int64_t NUCLEUS_GUESS = 256;

    struct Token {
        float logit, weight;
        int32_t id;
    };

    // (logit - max) / temperature, -inf past the end, and e to the power of these.
    void scale(const float* logits, float temperature) {
        const float highest = *std::max_element(logits, logits + vocabulary_);
        for (int64_t i = 0; i < vocabulary_; i++) scaled_[i] = (logits[i] - highest) / temperature;
        std::fill(scaled_.begin() + vocabulary_, scaled_.end(), -INFINITY);
        for (size_t i = 0; i < scaled_.size(); i += LANES) store(&weights_[i], exp_nonpositive(load(&scaled_[i])));
    }

    // A threshold that at least `count` logits reach, and not many more: logits are put in groups, and `count` of the
    // groups' maxima reach it.
    float threshold(int64_t count) {
        const int64_t pieces = scaled_.size() / LANES,
                      groups = std::min<int64_t>(pieces, std::max<int64_t>(count * 4 / LANES, 1));
        // Too few groups to tell: all tokens are candidates
        if (groups * LANES < count) return -INFINITY;
        highest_.assign(groups * LANES, -INFINITY);
        for (int64_t piece = 0; piece < pieces; piece++) {
            float* to = highest_.data() + piece % groups * LANES;
            Floats one = load(scaled_.data() + piece * LANES), other = load(to);
            store(to, one > other ? one : other);
        }
        std::nth_element(highest_.begin(), highest_.begin() + count - 1, highest_.end(), std::greater<float>());
        return highest_[count - 1];
    }

    // Collect the tokens that reach a threshold, in the order of their ids.
    void collect(float least) {
        candidates_.clear();
        for (int64_t i = 0; i < vocabulary_; i += LANES) {
            Ints reached = load(scaled_.data() + i) >= least;
            if (!any(reached)) continue;
            for (int64_t j = i; j < std::min(i + LANES, vocabulary_); j++)
                if (scaled_[j] >= least) candidates_.push_back({scaled_[j], weights_[j], int32_t(j)});
        }
    }

    static bool any(Ints truths) {
        int64_t words[sizeof(Ints) / 8], all = 0;
        std::memcpy(words, &truths, sizeof(truths));
        for (int64_t word : words) all |= word;
        return all;
    }

    // Of the collected tokens, keep the `count` largest; ties go to the lower ids.
    void keep_largest(int64_t count) {
        if (count >= int64_t(candidates_.size())) return;
        order_ = candidates_;
        std::nth_element(order_.begin(), order_.begin() + count - 1, order_.end(), larger);
        const float least = order_[count - 1].logit;
        for (const Token& token : candidates_) count -= token.logit > least;
        size_t size = 0;
        for (const Token& token : candidates_)
            if (token.logit > least || (token.logit == least && count-- > 0)) candidates_[size++] = token;
        candidates_.resize(size);
    }

    static bool larger(const Token& one, const Token& other) { return one.logit > other.logit; }

    double mass() const {
        double total = 0;
        for (const Token& token : candidates_) total += token.weight;
        return total;
    }

    // The smallest number of largest tokens that have at least this mass together; all if they have less. Quickselect:
    // the half that contains the answer is partitioned further.
    int64_t nucleus(double wanted) {
        order_ = candidates_;
        auto first = order_.begin(), last = order_.end();
        while (last - first > 1) {  // the answer is in [first, last); the mass before `first` is subtracted already
            auto middle = first + (last - first) / 2;
            std::nth_element(first, middle, last, larger);
            double upper = 0;
            for (auto token = first; token < middle; token++) upper += token->weight;
            if (upper >= wanted) {
                last = middle;
            } else {
                wanted -= upper;
                first = middle;
            }
        }
        return first - order_.begin() + 1;
    }

    // The first collected token at which the cumulative mass exceeds this share of the total.
    int64_t inverse_cdf(double uniform) const {
        const double target = uniform * mass();
        double total = 0;
        int64_t last = candidates_.front().id;
        for (const Token& token : candidates_) {
            // Rounding may leave the target at the total itself: then the last token that can occur
            if (token.weight > 0) last = token.id;
            if ((total += token.weight) > target) return token.id;
        }
        return last;
    }

    const int64_t vocabulary_;
    std::vector<float> scaled_, weights_, highest_;
    std::vector<Token> candidates_, order_;
};

}  // namespace
