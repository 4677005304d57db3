/* Unpacks the weights of a packed integer network: C99, no dependency but the standard headers.
 *
 *   #include "model.h"
 *   int8_t weights[...];                        one byte per weight, filters * products
 *   uint8_t mask[...];                          one byte per group of a filter
 *   if (qat_unpack(&qat_layers[3], qat_weights, sizeof qat_weights, weights, mask) != 0) { ... }
 *
 * Weights come filter by filter, in each kernel row, kernel column, input channel (the last fastest).
 * The format is that of docs/packed-format.md, version 1.
 */
#ifndef QAT_UNPACK_H
#define QAT_UNPACK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { QAT_DENSE = 0, QAT_SPARSE = 1, QAT_BINARY_PLUS_SPARSE = 2 };
enum { QAT_INDEX_NONE = 0, QAT_INDEX_BITMAP = 1, QAT_INDEX_RICE = 2, QAT_INDEX_LISTS = 3 };

typedef struct {
    const char *name;
    uint8_t format;             /* QAT_DENSE, ... */
    uint8_t weight_bit_width;   /* of the stream `weights`; of `values` if there is no `weights` */
    uint8_t index_coding;       /* QAT_INDEX_NONE, ... */
    uint8_t index_parameter;
    uint32_t filters, kernel_rows, kernel_columns, channels;
    uint32_t group_rows, group_columns, group_channels; /* groups of a filter: each 1, or as the kernel */
    uint32_t kept_groups;
    uint32_t pe, simd;          /* order of `weights` */
    uint8_t shift, bias_shift, negative_shift;
    int32_t quant_min, quant_max;
    size_t weights, values, index_first, index_second, multipliers, biases; /* offsets in bytes */
} qat_layer;

typedef struct {
    const uint8_t *next, *end;
    uint64_t window;
    unsigned filled;
} qat_bits;

static inline qat_bits qat_open(const uint8_t *data, size_t size, size_t offset) {
    qat_bits bits = {data + (offset < size ? offset : size), data + size, 0, 0};
    return bits;
}

/* The next `count` bits (0..32); zeros behind the end. */
static inline uint32_t qat_take(qat_bits *bits, unsigned count) {
    while (bits->filled < count) {
        if (bits->end - bits->next >= 4) {
            uint32_t word = (uint32_t)bits->next[0] | (uint32_t)bits->next[1] << 8 | (uint32_t)bits->next[2] << 16 |
                            (uint32_t)bits->next[3] << 24;
            bits->window |= (uint64_t)word << bits->filled;
            bits->next += 4;
            bits->filled += 32;
        } else {
            uint64_t byte = bits->next < bits->end ? *bits->next++ : 0;
            bits->window |= byte << bits->filled;
            bits->filled += 8;
        }
    }
    uint32_t value = (uint32_t)(bits->window & ((UINT64_C(1) << count) - 1));
    bits->window >>= count;
    bits->filled -= count;
    return value;
}

/* A code of two's complement; one bit is a sign. */
static inline int8_t qat_code(qat_bits *bits, unsigned bit_width) {
    int32_t field = (int32_t)qat_take(bits, bit_width);
    if (bit_width == 1) return (int8_t)(1 - 2 * field);
    int32_t half = (int32_t)1 << (bit_width - 1);
    return (int8_t)((field ^ half) - half);
}

static inline unsigned qat_bit_length(uint32_t value) {
    unsigned length = 0;
    for (; value; value >>= 1) length++;
    return length;
}

/* `weights`: blocks of pe filters, in them blocks of simd products, in them filter by filter. */
static inline void qat_unpack_plane(const qat_layer *layer, qat_bits bits, unsigned bit_width, int scale,
                                    size_t products, int8_t *out) {
    for (size_t block = 0; block < layer->filters; block += layer->pe) {
        size_t last = layer->filters - block < layer->pe ? layer->filters : block + layer->pe;
        for (size_t start = 0; start < products; start += layer->simd) {
            size_t count = products - start < layer->simd ? products - start : layer->simd;
            for (size_t filter = block; filter < last; filter++) {
                int8_t *row = out + filter * products + start;
                for (size_t i = 0; i < count; i++) row[i] = (int8_t)(scale * qat_code(&bits, bit_width));
            }
        }
    }
}

/* Positions of kept groups, one after the other. */
typedef struct {
    const qat_layer *layer;
    qat_bits first, second;
    uint32_t per_filter;
    uint64_t groups, next, filter, left;
    unsigned count_bits;
} qat_positions;

/* The next kept group, or `groups` if the stream is damaged. */
static inline uint64_t qat_next_position(qat_positions *at) {
    uint64_t gap = 0;
    switch (at->layer->index_coding) {
    case QAT_INDEX_NONE:
        break;
    case QAT_INDEX_BITMAP:
        while (at->next + gap < at->groups && !qat_take(&at->first, 1)) gap++;
        break;
    case QAT_INDEX_RICE:
        while (gap < at->groups && !qat_take(&at->first, 1)) gap++;
        gap = (gap << at->layer->index_parameter) + qat_take(&at->second, at->layer->index_parameter);
        break;
    default:
        while (!at->left) {
            if (at->filter == at->layer->filters) return at->groups;
            at->filter++;
            at->left = qat_take(&at->first, at->count_bits);
        }
        at->left--;
        return (at->filter - 1) * at->per_filter + qat_take(&at->second, at->layer->index_parameter);
    }
    uint64_t position = at->next + gap;
    at->next = position + 1;
    return position < at->groups ? position : at->groups;
}

/* Unpacks one layer.
 *
 * data, size  content of weights.bin
 * out         filters * kernel_rows * kernel_columns * channels codes; signs of binary_plus_sparse are -16, +16
 * mask        scratch, group_rows * group_columns * group_channels bytes; not used for dense layers
 *
 * Returns 0, or -1 if the index is damaged.
 */
static inline int qat_unpack(const qat_layer *layer, const uint8_t *data, size_t size, int8_t *out, uint8_t *mask) {
    size_t products = (size_t)layer->kernel_rows * layer->kernel_columns * layer->channels;
    uint32_t per_filter = layer->group_rows * layer->group_columns * layer->group_channels;
    if (layer->format == QAT_DENSE) {
        qat_unpack_plane(layer, qat_open(data, size, layer->weights), layer->weight_bit_width, 1, products, out);
        return 0;
    }
    unsigned value_bits = layer->weight_bit_width;
    if (layer->format == QAT_BINARY_PLUS_SPARSE) {
        qat_unpack_plane(layer, qat_open(data, size, layer->weights), 1, 16, products, out);
        value_bits = 8;
    } else {
        memset(out, 0, products * layer->filters);
    }
    qat_bits values = qat_open(data, size, layer->values);
    qat_positions at = {layer, qat_open(data, size, layer->index_first), qat_open(data, size, layer->index_second),
                        per_filter, (uint64_t)per_filter * layer->filters, 0, 0, 0, qat_bit_length(per_filter)};
    if (per_filter == products) { /* single weights */
        uint64_t lowest = 0;
        for (uint32_t i = 0; i < layer->kept_groups; i++) {
            uint64_t position = qat_next_position(&at);
            if (position < lowest || position >= at.groups) return -1;
            out[position] = qat_code(&values, value_bits);
            lowest = position + 1;
        }
        return 0;
    }
    uint64_t kept = 0, position = layer->kept_groups ? qat_next_position(&at) : at.groups;
    for (uint64_t filter = 0; filter < layer->filters; filter++) {
        uint64_t begin = filter * per_filter;
        memset(mask, 0, per_filter);
        for (; kept < layer->kept_groups && position < begin + per_filter;) {
            if (position < begin) return -1;
            mask[position - begin] = 1;
            if (++kept < layer->kept_groups) position = qat_next_position(&at);
        }
        int8_t *row = out + filter * products;
        for (uint32_t h = 0; h < layer->kernel_rows; h++) {
            for (uint32_t w = 0; w < layer->kernel_columns; w++) {
                uint32_t group = (layer->group_rows > 1 ? h : 0) * layer->group_columns;
                group = (group + (layer->group_columns > 1 ? w : 0)) * layer->group_channels;
                for (uint32_t c = 0; c < layer->channels; c++, row++) {
                    if (mask[group + (layer->group_channels > 1 ? c : 0)]) *row = qat_code(&values, value_bits);
                }
            }
        }
    }
    return kept == layer->kept_groups ? 0 : -1;
}

/* Multiplier or bias of an output channel; `offset` is layer->multipliers or layer->biases. */
static inline int16_t qat_int16(const uint8_t *data, size_t offset, uint32_t channel) {
    uint32_t field = (uint32_t)data[offset + 2 * (size_t)channel] | (uint32_t)data[offset + 2 * (size_t)channel + 1] << 8;
    return (int16_t)((int32_t)(field ^ 0x8000u) - 0x8000);
}

#endif
