/* shape_s: a model with random weights whose size makes figures mean something: hidden 1024, 24 layers, 16
 * heads, 8 kv heads, ffn 2816, GPT-2's vocabulary; 386 million weights, 772 MB as bf16. No tokenizer.
 *
 *     const char *dir = shape_s_model();       // made once per build folder: seconds
 *
 * What fails ends the program. Owner: the benchmark's main thread. */
#ifndef TANDEM_TESTS_BENCH_SHAPE_S_H
#define TANDEM_TESTS_BENCH_SHAPE_S_H

const char *shape_s_model(void);
const char *shape_s_cache(void); /* a folder for its packed weights, kept like the model */

#endif
