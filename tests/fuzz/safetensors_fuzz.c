/* safetensors files: any bytes are refused with a text that names the file, or every byte of the data
 * is in exactly one tensor. */
#include <string.h>

#include "engine/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tensors t = {0};
    if (tensors_parse(&t, "f.safetensors", data, size, 0) == OK) {
        const unsigned char *end = t.tensors_count ? t.tensor[0].data : data + size;
        for (uint32_t i = 0; i < t.tensors_count; i++) {
            const struct tensor *one = &t.tensor[i];
            uint64_t bytes = dtype_bytes(one->dtype);
            char text[TENSOR_TEXT];
            for (uint32_t d = 0; d < one->dims_count; d++)
                bytes *= one->dim[d];
            CHECK(one->data == end && one->bytes == bytes && bytes <= size);
            CHECK(strlen(tensor_describe(one, text)) < TENSOR_TEXT);
            end += bytes;
        }
        CHECK(end == data + size);
    } else {
        CHECK(strstr(err_text(), "f.safetensors"));
    }
    tensors_close(&t);
    return 0;
}
