/* What two nodes can exchange: one model's KV in orders that can meet, and of it the layers and kv heads
 * that both hold. */

#include "xfer/core_state.h"

static enum err differs(const struct xfer_core *core, const struct frame *f)
{
    const struct kv_geometry *theirs = &f->geometry, *ours = &core->options.geometry;
    return err_set(ERR_INVALID,
                   "KV differs: %u layers x %u heads x %u, dtype %u, layout %u there, "
                   "%u x %u x %u, %u, %u here",
                   f->part.layers_all, f->part.heads_all, theirs->head_dim, theirs->dtype,
                   theirs->layout, core->options.part.layers_all, core->options.part.heads_all,
                   ours->head_dim, ours->dtype, ours->layout);
}

static enum err check_share(const struct kv_range *share, const struct kv_range *theirs,
                            const struct kv_range *ours, bool whole_blocks)
{
    if (kv_range_empty(share))
        return err_set(ERR_INVALID,
                       "parts do not meet: layers %u to %u, heads %u to %u there, "
                       "%u to %u, %u to %u here",
                       theirs->layers_first, theirs->layers_end, theirs->heads_first,
                       theirs->heads_end, ours->layers_first, ours->layers_end, ours->heads_first,
                       ours->heads_end);
    bool all_heads = share->heads_first == ours->heads_first && share->heads_end == ours->heads_end;
    if (whole_blocks && !all_heads)
        return err_set(ERR_INVALID,
                       "heads %u to %u of %u to %u here: a device's pool moves whole blocks only",
                       share->heads_first, share->heads_end, ours->heads_first, ours->heads_end);
    return OK;
}

/* How many units go into a frame on this link. */
static uint32_t frame_units(const struct xfer_session *s)
{
    if (s->slot_bytes == 0) return xfer_frame_units(s->unit_bytes);
    size_t fit = s->slot_bytes / s->unit_bytes;
    return fit < XFER_SLOT_UNITS_MAX ? (uint32_t)fit : XFER_SLOT_UNITS_MAX;
}

enum err session_meet(struct xfer_core *core, struct xfer_session *s, const struct frame *f)
{
    const struct xfer_core_options *o = &core->options;
    if (!kv_same_model(&f->geometry, &f->part, &o->geometry, &o->part)) return differs(core, f);
    struct kv_range theirs = kv_part_range(&f->geometry, &f->part);
    struct kv_range ours = kv_part_range(&o->geometry, &o->part);
    s->share = kv_range_both(ours, &theirs);
    enum err e = check_share(&s->share, &theirs, &ours, o->whole_blocks);
    if (e != OK) return e;
    s->layout = kv_layout_between(f->geometry.layout, o->geometry.layout);
    if (!o->whole_blocks && s->layout != o->geometry.layout) return differs(core, f);
    s->unit_bytes = slice_bytes(&o->geometry, s->share.heads_end - s->share.heads_first);
    s->frame_units = frame_units(s);
    return s->frame_units > 0
               ? OK
               : err_set(ERR_INVALID, "slots of %u bytes are shorter than 16 tokens of a layer",
                         s->slot_bytes);
}
