/* log: one line per event on stderr: time, level, event name, key=value pairs.
 *
 *     log_info("node_joined", "node=%s role=%s blocks=%u", name, role, blocks_count);
 *     2026-01-31T12:00:00.123Z info node_joined node=p0 role=prefill blocks=4096
 *
 * Rules: the event name never changes with the wording; values with blanks are quoted by the
 * caller. Nothing per token. A line about a request carries request=ID. Any thread; one write per
 * line. */
#ifndef TANDEM_COMMON_LOG_H
#define TANDEM_COMMON_LOG_H

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };

/* Lines below `level` are dropped; the default is LOG_INFO. `program` goes into every line after
 * the level, NULL: nothing. Call before other threads start. */
void log_setup(enum log_level level, const char *program);
void log_line(enum log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
enum log_level log_level_now(void);

#define log_debug(...)                                                                             \
    do {                                                                                           \
        if (log_level_now() <= LOG_DEBUG) log_line(LOG_DEBUG, __VA_ARGS__);                        \
    } while (0)
#define log_info(...) log_line(LOG_INFO, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)

#endif
