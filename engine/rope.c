#include "engine/rope.h"

#include <math.h>
#include <stddef.h>

#include "common/hash.h"

enum { SPLIT = 256 };
#define TWO_PI 6.283185307179586

/* Llama 3: waves longer than the context of the first training are stretched by `factor`, short
 * ones are kept, those between are blended. */
static double llama3_frequency(const struct rope_config *r, double plain)
{
    double turns = r->original_positions * plain / TWO_PI; /* within that context */
    if (turns < r->low_factor) return plain / r->factor;
    if (turns > r->high_factor) return plain;
    double keep = (turns - r->low_factor) / (r->high_factor - r->low_factor);
    return (1 - keep) * plain / r->factor + keep * plain;
}

double rope_frequency(const struct rope_config *r, uint32_t half_dim, uint32_t pair)
{
    double plain = pow(r->theta, -(double)pair / half_dim);
    switch (r->kind) {
    case ROPE_PLAIN: break;
    case ROPE_LINEAR: return plain / r->factor;
    case ROPE_LLAMA3: return llama3_frequency(r, plain);
    }
    return plain;
}

struct turn {
    double cos, sin;
};

static struct turn turn_by(double angle)
{
    return (struct turn){cos(angle), sin(angle)};
}
static struct turn turn_add(struct turn a, struct turn b)
{
    return (struct turn){a.cos * b.cos - a.sin * b.sin, a.sin * b.cos + a.cos * b.sin};
}

void rope_fill(const struct rope_config *r, uint32_t half_dim, uint32_t positions_count,
               float *cos_out, float *sin_out)
{
    for (uint32_t i = 0; i < half_dim; i++) {
        struct turn near[SPLIT], far = {1, 0};
        double frequency = rope_frequency(r, half_dim, i);
        for (uint32_t b = 0; b < SPLIT; b++)
            near[b] = turn_by(b * frequency);
        for (uint32_t p = 0; p < positions_count; p++) {
            if (p % SPLIT == 0) far = turn_by(p * frequency);
            struct turn t = turn_add(far, near[p % SPLIT]);
            cos_out[(size_t)p * half_dim + i] = (float)t.cos;
            sin_out[(size_t)p * half_dim + i] = (float)t.sin;
        }
    }
}

uint64_t rope_hash(const struct rope_config *r, uint32_t half_dim)
{
    struct hash_stream s;
    hash_start(&s);
    for (uint32_t i = 0; i < half_dim; i++) {
        double frequency = rope_frequency(r, half_dim, i);
        for (uint32_t p = 1; p < MODEL_CONTEXT_MAX; p += p / 8 + 1) {
            struct turn t =
                turn_add(turn_by(p / SPLIT * SPLIT * frequency), turn_by(p % SPLIT * frequency));
            float rounded[2] = {(float)t.cos, (float)t.sin};
            hash_more(&s, rounded, sizeof rounded);
        }
    }
    return hash_end64(&s);
}
