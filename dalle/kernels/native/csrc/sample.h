// One token a row from its logits: temperature, top-k, nucleus, and the inverse of the distribution function.

#pragma once

#include <functional>
#include <vector>

#include "simd.h"

namespace {

// Draws for one row after the other; what is here is only room that is used again.
class Sampler {
  public:
    explicit Sampler(int64_t vocabulary)
        : vocabulary_(vocabulary), scaled_((vocabulary + LANES - 1) / LANES * LANES), weights_(scaled_.size()) {}

    // `top_k` from 1 to the vocabulary, `top_p` in (0, 1]; at these ends all tokens stay. -1 of what is no distribution.
    int64_t draw(const float* logits, double uniform, float temperature, int64_t top_k, double top_p) {
        scale(logits, temperature);
        double all = 0;
        for (size_t i = 0; i < weights_.size(); i += LANES) all += sum(load(&weights_[i]));
        if (!(all > 0)) return -1;  // there was a nan, or an infinity: no order of tokens
        if (top_k < vocabulary_) {
            fill(bound(top_k));
            keep(top_k);
            if (top_p < 1) keep(nucleus(top_p * mass()));
        } else if (top_p < 1) {
            fill(bound(std::min(SOME, vocabulary_)));  // mostly they hold the nucleus
            if (mass() < top_p * all) fill(-INFINITY);
            keep(nucleus(top_p * all));
        } else {
            fill(-INFINITY);
        }
        return inverse(uniform);
    }

  private:
    static constexpr int64_t SOME = 256;

    struct Token {
        float logit, weight;
        int32_t id;
    };

    // (logit - largest) / temperature, -inf behind the end, and e to these.
    void scale(const float* logits, float temperature) {
        const float most = *std::max_element(logits, logits + vocabulary_);
        for (int64_t i = 0; i < vocabulary_; i++) scaled_[i] = (logits[i] - most) / temperature;
        std::fill(scaled_.begin() + vocabulary_, scaled_.end(), -INFINITY);
        for (size_t i = 0; i < scaled_.size(); i += LANES) save(&weights_[i], exponential(load(&scaled_[i])));
    }

    // A number that at least `count` logits reach, and few more: so many of the largest of groups of logits reach it.
    float bound(int64_t count) {
        const int64_t pieces = scaled_.size() / LANES, groups = std::min<int64_t>(pieces, std::max<int64_t>(count * 4 / LANES, 1));
        if (groups * LANES < count) return -INFINITY;
        highest_.assign(groups * LANES, -INFINITY);
        for (int64_t piece = 0; piece < pieces; piece++) {
            float* to = highest_.data() + piece % groups * LANES;
            Floats one = load(scaled_.data() + piece * LANES), other = load(to);
            save(to, one > other ? one : other);
        }
        std::nth_element(highest_.begin(), highest_.begin() + count - 1, highest_.end(), std::greater<float>());
        return highest_[count - 1];
    }

    // Keep the tokens that reach a bound, in the order of their ids.
    void fill(float bound) {
        kept_.clear();
        for (int64_t i = 0; i < vocabulary_; i += LANES) {
            Ints reached = load(scaled_.data() + i) >= bound;
            if (!any(reached)) continue;
            for (int64_t j = i; j < std::min(i + LANES, vocabulary_); j++)
                if (scaled_[j] >= bound) kept_.push_back({scaled_[j], weights_[j], int32_t(j)});
        }
    }

    static bool any(Ints truths) {
        int64_t words[sizeof(Ints) / 8], all = 0;
        std::memcpy(words, &truths, sizeof(truths));
        for (int64_t word : words) all |= word;
        return all;
    }

    // Of those kept, keep the `count` largest; of equal ones the lower ids.
    void keep(int64_t count) {
        if (count >= int64_t(kept_.size())) return;
        order_ = kept_;
        std::nth_element(order_.begin(), order_.begin() + count - 1, order_.end(), larger);
        const float least = order_[count - 1].logit;
        for (const Token& token : kept_) count -= token.logit > least;
        size_t size = 0;
        for (const Token& token : kept_)
            if (token.logit > least || (token.logit == least && count-- > 0)) kept_[size++] = token;
        kept_.resize(size);
    }

    static bool larger(const Token& one, const Token& other) { return one.logit > other.logit; }

    double mass() const {
        double total = 0;
        for (const Token& token : kept_) total += token.weight;
        return total;
    }

    // How many of the largest of those kept together have at least this mass, at the fewest; all if they have less.
    int64_t nucleus(double wanted) {
        order_ = kept_;
        auto first = order_.begin(), last = order_.end();
        while (last - first > 1) {  // the answer is behind `first`, whose predecessors have been taken from `wanted`
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

    // The first of those kept up to which the mass exceeds this share of all.
    int64_t inverse(double uniform) const {
        const double target = uniform * mass();
        double total = 0;
        int64_t last = kept_.front().id;
        for (const Token& token : kept_) {
            if (token.weight > 0) last = token.id;
            if ((total += token.weight) > target) return token.id;
        }
        return last;
    }

    const int64_t vocabulary_;
    std::vector<float> scaled_, weights_, highest_;
    std::vector<Token> kept_, order_;
};

}  // namespace
