/* examples/llmkit/command.h -- the commands of llmkit, and what they share */
#ifndef LK_COMMAND_H
#define LK_COMMAND_H

/* argv[0] is the command's own name; what comes back is the exit status. */
int lk_chat_main(int argc, char **argv);
int lk_batch_main(int argc, char **argv);
int lk_mock_main(int argc, char **argv);

/* "llmkit: " and the message, as one line on standard error. */
void lk_say(const char *format, ...);

/* From now on SIGINT and SIGTERM call stop, which may only do what a signal handler may
 * (llmkit_loop_stop and llmkit_batch_stop are fine).  Interrupted calls are restarted. */
void lk_catch_stop(void (*stop)(int signal));

/* As many descriptors as may be had: each request in flight is a connection, and the usual soft
 * limit is 1024. */
void lk_raise_descriptor_limit(void);

#endif
