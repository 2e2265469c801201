#include "tests/unit/testing.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/file.h"
#include "common/hash.h"

static char folder[64];

static const char *in_folder(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void what_was_written_is_what_is_mapped(void **state)
{
    (void)state;
    struct file_map map;
    const char *path = in_folder("a");
    assert_ok(file_write_whole(path, "old", 3));
    assert_ok(file_write_whole(path, "newer", 5));
    assert_ok(file_map_open(&map, path));
    assert_int_equal(map.size_bytes, 5);
    assert_memory_equal(map.data, "newer", 5);
    file_map_close(&map);
    file_map_close(&map);
    unlink(path);
}

static void an_empty_file_maps_to_no_bytes(void **state)
{
    (void)state;
    struct file_map map;
    const char *path = in_folder("empty");
    assert_ok(file_write_whole(path, "", 0));
    assert_ok(file_map_open(&map, path));
    assert_int_equal(map.size_bytes, 0);
    assert_non_null(map.data);
    file_map_close(&map);
    unlink(path);
}

static void what_is_no_file_is_named_in_the_error(void **state)
{
    (void)state;
    struct file_map map;
    assert_int_equal(file_map_open(&map, in_folder("missing")), ERR_NOT_FOUND);
    assert_non_null(strstr(err_text(), "missing"));
    assert_int_equal(file_map_open(&map, folder), ERR_INVALID);
    const char *pipe_path = in_folder("pipe");
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    assert_int_equal(file_map_open(&map, pipe_path), ERR_INVALID);
    unlink(pipe_path);
    assert_int_equal(file_write_whole(in_folder("no/such/folder"), "", 0), ERR_NOT_FOUND);
    char long_path[PATH_MAX + 10];
    memset(long_path, 'p', sizeof long_path - 1);
    long_path[sizeof long_path - 1] = '\0';
    assert_int_equal(file_write_whole(long_path, "", 0), ERR_INVALID);
}

static void an_aborted_or_failed_write_leaves_the_old_file_and_nothing_else(void **state)
{
    (void)state;
    struct file_write w;
    struct file_map map;
    const char *path = in_folder("kept");
    assert_ok(file_write_whole(path, "kept", 4));
    assert_ok(file_write_open(&w, path));
    assert_ok(file_write_add(&w, "lost", 4));
    file_write_abort(&w);
    file_write_abort(&w);
    assert_int_equal(access(w.temporary, F_OK), -1);

    assert_ok(file_write_open(&w, path));
    w.error = ERR_IO; /* as if the disk had been full */
    assert_int_equal(file_write_add(&w, "lost", 4), ERR_IO);
    assert_int_equal(file_write_commit(&w), ERR_IO);
    assert_int_equal(access(w.temporary, F_OK), -1);

    assert_ok(file_map_open(&map, path));
    assert_memory_equal(map.data, "kept", 4);
    file_map_close(&map);
    unlink(path);
}

static void a_hash_is_that_of_what_is_in_the_file(void **state)
{
    (void)state;
    assert_true(id128_is_none(file_hash(folder, "nothing")));
    assert_ok(file_write_whole(in_folder("a"), "some", 4));
    assert_true(id128_equal(file_hash(folder, "a"), hash128("some", 4)));
    unlink(in_folder("a"));
}

/* In a process without any of the three, a file that is opened gets none of their numbers. */
static void closed_standard_files_become_dev_null(void **state)
{
    (void)state;
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        for (int fd = 0; fd <= 2; fd++)
            close(fd);
        file_keep_standard();
        _exit(write(1, "x", 1) == 1 && open("/dev/zero", O_RDONLY) > 2 ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/tandem-file-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}
static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder); /* fails if a test left something behind */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_what_is_mapped),
        cmocka_unit_test(an_empty_file_maps_to_no_bytes),
        cmocka_unit_test(what_is_no_file_is_named_in_the_error),
        cmocka_unit_test(an_aborted_or_failed_write_leaves_the_old_file_and_nothing_else),
        cmocka_unit_test(a_hash_is_that_of_what_is_in_the_file),
        cmocka_unit_test(closed_standard_files_become_dev_null),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
