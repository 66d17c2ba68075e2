// Optimisers, in fp32 on the weights themselves; what they do is what `Optimiser` does on the processor, number by number.

__device__ __forceinline__ void adam(float *weights, const float *gradient, float *first, float *second, u64 length, float rate, float beta1,
                                     float beta2, float epsilon, float decay, float unbias1, float unbias2, const float *clip) {
    for EACH(i, length) {
        float g = gradient[i] * (clip ? *clip : 1.0f);
        first[i] = first[i] * beta1 + g * (1.0f - beta1);
        second[i] = second[i] * beta2 + g * g * (1.0f - beta2);
        float step = rate * (first[i] * unbias1) / (sqrtf(second[i] * unbias2) + epsilon);
        weights[i] -= step + decay * weights[i];
    }
}

__device__ __forceinline__ void sgd(float *weights, const float *gradient, float *velocity, u64 length, float rate, float momentum, int nesterov,
                                    float decay, const float *clip) {
    for EACH(i, length) {
        float g = gradient[i] * (clip ? *clip : 1.0f) + decay * weights[i];
        if (momentum > 0.0f) {
            velocity[i] = g + momentum * velocity[i];
            g = nesterov ? g + momentum * velocity[i] : velocity[i];
        }
        weights[i] -= rate * g;
    }
}

__device__ __forceinline__ void muon_direction(const float *gradient, float *velocity, float *direction, u64 length, float momentum, int nesterov,
                                               const float *clip) {
    for EACH(i, length) {
        float g = gradient[i] * (clip ? *clip : 1.0f);
        velocity[i] = momentum * velocity[i] + g;
        direction[i] = nesterov ? momentum * velocity[i] + g : velocity[i];
    }
}

// `other = a · one + b · other`.
__device__ __forceinline__ void blend(const float *one, float *other, float a, float b, u64 length) {
    for EACH(i, length) other[i] = a * one[i] + b * other[i];
}

// The sum of squares, by one block.
__device__ __forceinline__ void square_sum(const float *values, u64 length, double *sum) {
    __shared__ double shared[LOSS_THREADS];
    double own = 0.0;
    for (u64 i = threadIdx.x; i < length; i += LOSS_THREADS) own += (double)values[i] * (double)values[i];
    own = total(own, shared);
    if (threadIdx.x == 0) *sum = own;
}

// Makes the norm of values whose sum of squares is given `norm`.
__device__ __forceinline__ void normalise(float *values, const double *sum, float norm, u64 length) {
    for EACH(i, length) values[i] *= norm / ((float)sqrt(*sum) + 1e-7f);
}

// What gradients are multiplied with so that their norm is at most `largest`.
__device__ __forceinline__ void clip_factor(const double *sums, int count, float largest, float *factor) {
    double all = 0.0;
    for (int i = 0; i < count; i++) all += sums[i];
    *factor = sqrt(all) > largest ? (float)(largest / sqrt(all)) : 1.0f;
}
