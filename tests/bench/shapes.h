/* shapes: models with random weights, of sizes at which figures mean something; no tokenizer.
 * - S: hidden 1024, 24 layers, 16 heads, 8 kv heads, ffn 2816, GPT-2's vocabulary; 386 million weights, 772 MB as bf16.
 * - M: hidden 512, 8 layers, 8 heads, 4 kv heads, ffn 1408, a vocabulary of 8192; 32 million, 64 MB: steps of a
 *   millisecond, ten times those of the demo model, so that messages are a small part beside them.
 *
 *     const char *dir = shape_s_model();       // made once per build folder: seconds
 *
 * What fails ends the program. Owner: the benchmark's main thread. */
#ifndef TANDEM_TESTS_BENCH_SHAPES_H
#define TANDEM_TESTS_BENCH_SHAPES_H

const char *shape_s_model(void);
const char *shape_m_model(void);
const char *shapes_cache(void); /* a folder for their packed weights, kept like the models */

#endif
