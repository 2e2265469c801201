#include "kv/disk_index.h"

#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/mem.h"
#include "kv/lmdb_sound.h"

/* For the pages that three transactions of DISK_INDEX_CHANGES_MAX changes write anew. */
#define FIXED_BYTES ((uint64_t)8 << 20)

/* One process, one thread, no readers: a lock file would only be one more thing to be damaged. */
#define ENV_FLAGS (MDB_NOSUBDIR | MDB_NOSYNC | MDB_NOLOCK | MDB_NOTLS | MDB_NORDAHEAD)

struct disk_index {
    char *path;
    MDB_env *env; /* NULL: a change failed; it is opened again by the next */
    MDB_dbi records;
    uint64_t bytes;
    int fd; /* LMDB's */
};

struct record {
    uint32_t slot, zero;
    uint64_t stamp;
};

uint64_t disk_index_bytes(uint32_t slots_count)
{
    uint64_t bytes = FIXED_BYTES + (uint64_t)slots_count * DISK_INDEX_RECORD;
    return (bytes + 4095) & ~(uint64_t)4095;
}

static enum err fail(const char *what, int rc)
{
    enum err e = rc == ENOSPC || rc == EDQUOT || rc == EFBIG    ? ERR_FULL
                 : rc == ENOMEM                                 ? ERR_MEMORY
                 : rc >= MDB_KEYEXIST && rc <= MDB_LAST_ERRCODE ? ERR_FORMAT
                                                                : ERR_IO;
    return err_set(e, "index: %s: %s", what, mdb_strerror(rc));
}

/* Whether there is one already that LMDB can be given. */
static enum err inspect(const char *path, uint64_t bytes)
{
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) return OK;
    if (fd < 0) return err_set(ERR_FORMAT, "index: %s: %s", path, strerror(errno));
    struct stat s;
    enum err e = OK;
    if (fstat(fd, &s) != 0 || !S_ISREG(s.st_mode))
        e = err_set(ERR_FORMAT, "index: %s is no file", path);
    else if (s.st_size != 0)
        e = lmdb_sound(fd, bytes, sizeof(struct id128), sizeof(struct record));
    close(fd);
    return e;
}

/* All of the file's space is taken now, so that a later change finds room and no page of the map lies
 * behind the file's end. Where there is not so much, or the file system cannot do that, the size alone is set:
 * then a change may find the disk full. */
static enum err reserve(struct disk_index *x)
{
    struct stat s;
    if (fstat(x->fd, &s) != 0) return fail("size", errno);
    if (fallocate(x->fd, 0, 0, (off_t)x->bytes) == 0) return OK;
    off_t bytes = s.st_size > (off_t)x->bytes ? s.st_size : (off_t)x->bytes;
    /* What it took before it failed goes back. */
    if (ftruncate(x->fd, s.st_size) == 0 && ftruncate(x->fd, bytes) == 0) return OK;
    return fail("size", errno);
}

static enum err open_records(struct disk_index *x)
{
    MDB_txn *txn;
    int rc = mdb_txn_begin(x->env, NULL, MDB_RDONLY, &txn);
    if (rc != 0) return fail("begin", rc);
    if ((rc = mdb_dbi_open(txn, NULL, 0, &x->records)) == 0)
        rc = mdb_txn_commit(txn);
    else
        mdb_txn_abort(txn);
    return rc == 0 ? OK : fail("open", rc);
}

static void end_env(struct disk_index *x)
{
    if (x->env) mdb_env_close(x->env);
    x->env = NULL;
}

static enum err begin_env(struct disk_index *x)
{
    enum err e = inspect(x->path, x->bytes);
    if (e != OK) return e;
    int rc = mdb_env_create(&x->env);
    if (rc == 0) rc = mdb_env_set_mapsize(x->env, x->bytes);
    if (rc == 0) rc = mdb_env_open(x->env, x->path, ENV_FLAGS, 0600);
    if (rc == 0) rc = mdb_env_get_fd(x->env, &x->fd);
    e = rc == 0 ? reserve(x) : fail(x->path, rc);
    if (e == OK) e = open_records(x);
    if (e != OK) end_env(x);
    return e;
}

enum err disk_index_open(struct disk_index **out, const char *path, uint32_t slots_count)
{
    *out = NULL;
    struct disk_index *x = mem_new(sizeof *x);
    if (!x) return ERR_MEMORY;
    x->bytes = disk_index_bytes(slots_count);
    x->path = mem_copy_string(path);
    enum err e = x->path ? begin_env(x) : ERR_MEMORY;
    if (e != OK) {
        mem_free(x->path);
        mem_free(x);
        return e;
    }
    *out = x;
    return OK;
}

void disk_index_close(struct disk_index *x)
{
    if (!x) return;
    struct stat s;
    if (x->env && fstat(x->fd, &s) == 0 && (uint64_t)s.st_size >= x->bytes) mdb_env_sync(x->env, 1);
    end_env(x);
    mem_free(x->path);
    mem_free(x);
}

/* LMDB reads through a map: a file that somebody has cut would end the process. */
static enum err whole(const struct disk_index *x)
{
    struct stat s;
    if (fstat(x->fd, &s) != 0) return fail("stat", errno);
    if ((uint64_t)s.st_size >= x->bytes) return OK;
    return err_set(ERR_FORMAT, "index: the file was cut to %lld bytes", (long long)s.st_size);
}

static enum err each(MDB_cursor *cursor, disk_index_fn *on_entry, void *ctx)
{
    MDB_val key, data;
    int rc;
    while ((rc = mdb_cursor_get(cursor, &key, &data, MDB_NEXT)) == 0) {
        struct disk_index_change entry;
        struct record r;
        CHECK(key.mv_size == sizeof entry.key && data.mv_size == sizeof r); /* lmdb_sound */
        memcpy(&entry.key, key.mv_data, sizeof entry.key);
        memcpy(&r, data.mv_data, sizeof r);
        entry.slot = r.slot;
        entry.stamp = r.stamp;
        enum err e = on_entry(ctx, &entry);
        if (e != OK) return e;
    }
    return rc == MDB_NOTFOUND ? OK : fail("read", rc);
}

enum err disk_index_load(struct disk_index *x, disk_index_fn *on_entry, void *ctx)
{
    MDB_txn *txn;
    MDB_cursor *cursor;
    enum err e = whole(x);
    if (e != OK) return e;
    int rc = mdb_txn_begin(x->env, NULL, MDB_RDONLY, &txn);
    if (rc != 0) return fail("begin", rc);
    if ((rc = mdb_cursor_open(txn, x->records, &cursor)) == 0) {
        e = each(cursor, on_entry, ctx);
        mdb_cursor_close(cursor);
    } else {
        e = fail("read", rc);
    }
    mdb_txn_abort(txn);
    return e;
}

static int change_one(const struct disk_index *x, MDB_txn *txn, const struct disk_index_change *c)
{
    struct record r = {.slot = c->slot, .stamp = c->stamp};
    struct id128 bytes = c->key;
    MDB_val key = {sizeof bytes, &bytes}, data = {sizeof r, &r};
    if (c->slot != DISK_INDEX_DROP) return mdb_put(txn, x->records, &key, &data, 0);
    int rc = mdb_del(txn, x->records, &key, NULL);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static enum err commit(struct disk_index *x, const struct disk_index_change *change,
                       uint32_t changes_count)
{
    MDB_txn *txn;
    enum err e = x->env ? whole(x) : begin_env(x);
    if (e != OK) return e;
    int rc = mdb_txn_begin(x->env, NULL, 0, &txn);
    if (rc != 0) return fail("begin", rc);
    for (uint32_t i = 0; i < changes_count && rc == 0; i++)
        rc = change_one(x, txn, &change[i]);
    if (rc != 0) {
        mdb_txn_abort(txn);
        return fail("change", rc);
    }
    rc = mdb_txn_commit(txn);
    return rc == 0 ? OK : fail("commit", rc);
}

enum err disk_index_update(struct disk_index *x, const struct disk_index_change *change,
                           uint32_t changes_count)
{
    CHECK(changes_count <= DISK_INDEX_CHANGES_MAX);
    if (changes_count == 0) return OK;
    enum err e = commit(x, change, changes_count);
    /* After a write that failed LMDB refuses all further ones; what it had committed is sound. */
    if (e != OK) end_env(x);
    return e;
}
