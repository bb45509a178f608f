/* Whatever it is given, the library answers with a code. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tcpmig.h>

#define IS(expected, call)                                                                                     \
    do {                                                                                                       \
        int got = (call);                                                                                      \
        if (got != (expected)) {                                                                               \
            fprintf(stderr, "%s:%d: %s: %s instead of %s (%s)\n", __FILE__, __LINE__, #call, tcpmig_code_name(got), \
                    tcpmig_code_name(expected), tcpmig_last_error());                                          \
            exit(1);                                                                                           \
        }                                                                                                      \
    } while (0)

static int never_lock(void *context, const struct tcpmig_flow *flows, size_t count, uint32_t lease_ms, void **lock)
{
    (void)context, (void)flows, (void)count, (void)lease_ms, (void)lock;
    return EBUSY;
}

static int never_renew(void *context, void *lock, uint32_t lease_ms)
{
    (void)context, (void)lock, (void)lease_ms;
    return ENOENT;
}

static int never_unlock(void *context, void *lock)
{
    (void)context, (void)lock;
    return 0;
}

static void never_leave(void *context, void *lock)
{
    (void)context, (void)lock;
}

static void nothing_is_no_argument(struct tcpmig_locker *none)
{
    struct tcpmig_frozen *frozen = NULL;
    struct tcpmig_prepared *prepared = NULL;
    struct tcpmig_restored *restored = NULL;
    struct tcpmig_image *image = NULL;
    struct tcpmig_flow flow;
    const void *bytes;
    size_t length;
    int fd = 0, code;

    IS(TCPMIG_INVALID, tcpmig_locker_open(NULL, &none));
    IS(TCPMIG_INVALID, tcpmig_locker_open("none", NULL));
    IS(TCPMIG_INVALID, tcpmig_locker_custom(NULL, NULL, &none));
    IS(TCPMIG_INVALID, tcpmig_freeze(0, NULL, 1, &frozen));
    IS(TCPMIG_INVALID, tcpmig_freeze(0, none, 1, NULL));
    IS(TCPMIG_INVALID, tcpmig_freeze_many(NULL, 1, none, 1, &frozen, &code));
    IS(TCPMIG_INVALID, tcpmig_freeze_many(&fd, 1, none, 1, NULL, &code));
    IS(TCPMIG_INVALID, tcpmig_freeze_many(&fd, 1, none, 1, &frozen, NULL));
    IS(TCPMIG_INVALID, tcpmig_freeze_many(&fd, (size_t)-1, none, 1, &frozen, &code));
    IS(TCPMIG_OK, tcpmig_freeze_many(NULL, 0, none, 1, NULL, NULL));
    IS(TCPMIG_INVALID, tcpmig_capture(NULL, NULL, 0, &image));
    IS(TCPMIG_INVALID, tcpmig_redirect(NULL, "127.0.0.1", 1));
    IS(TCPMIG_INVALID, tcpmig_frozen_renew(NULL));
    IS(TCPMIG_INVALID, tcpmig_frozen_flow(NULL, &flow));
    IS(TCPMIG_INVALID, tcpmig_keep(NULL));
    IS(TCPMIG_INVALID, tcpmig_keep(&frozen));
    IS(TCPMIG_INVALID, tcpmig_discard(NULL));
    IS(TCPMIG_INVALID, tcpmig_discard(&frozen));
    IS(TCPMIG_INVALID, tcpmig_prepare(NULL, none, 1, 0, &prepared));
    IS(TCPMIG_INVALID, tcpmig_prepare_many((const struct tcpmig_image *const *)&image, 1, none, 1, 0, &prepared, &code));
    IS(TCPMIG_INVALID, tcpmig_prepared_renew(NULL));
    IS(TCPMIG_INVALID, tcpmig_activate(NULL, &fd, &restored));
    IS(TCPMIG_INVALID, tcpmig_activate(&prepared, &fd, &restored));
    IS(TCPMIG_INVALID, tcpmig_image_decode(NULL, 1, &image));
    IS(TCPMIG_INVALID, tcpmig_image_decode("", 0, NULL));
    IS(TCPMIG_INVALID, tcpmig_image_write(NULL, 1));
    IS(TCPMIG_INVALID, tcpmig_image_bytes(NULL, &bytes, &length));
    IS(TCPMIG_INVALID, tcpmig_image_flow(NULL, &flow));
    IS(TCPMIG_INVALID, tcpmig_image_layer(NULL, 0, NULL));
    IS(TCPMIG_INVALID, tcpmig_restored_unwritten(NULL, &bytes, &length));
    IS(TCPMIG_INVALID, tcpmig_flow_text(NULL, NULL));
    assert(tcpmig_image_layers(NULL) == 0);
    assert(tcpmig_restored_warning(NULL, 0) == NULL);
    assert(strcmp(tcpmig_last_error_of(7), "") == 0);
    tcpmig_image_free(NULL);
    tcpmig_image_free(&image);
    tcpmig_locker_free(NULL);
    tcpmig_prepared_free(&prepared);
    tcpmig_restored_free(&restored);
}

static void nothing_is_no_agent_and_no_upgrade(void)
{
    struct tcpmig_agent *agent = NULL;
    struct tcpmig_upgrade *upgrade = NULL;
    struct tcpmig_service service = TCPMIG_SERVICE_INIT;
    struct tcpmig_session session = TCPMIG_SESSION_INIT;
    struct tcpmig_event event;
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    int fd;

    IS(TCPMIG_INVALID, tcpmig_agent_connect(NULL, &agent));
    IS(TCPMIG_INVALID, tcpmig_agent_connect("/nowhere", NULL));
    IS(TCPMIG_UNREACHABLE, tcpmig_agent_connect("/nowhere/agent.sock", &agent));
    IS(TCPMIG_INVALID, tcpmig_agent_register(NULL, &service));
    IS(TCPMIG_INVALID, tcpmig_agent_give(NULL, 0, "web", "host", &session, 1));
    IS(TCPMIG_INVALID, tcpmig_agent_next_event(NULL, &event));
    IS(TCPMIG_INVALID, tcpmig_agent_layer(NULL, 0, &layer));
    IS(TCPMIG_INVALID, tcpmig_agent_take(NULL, 1));
    IS(TCPMIG_INVALID, tcpmig_agent_refuse(NULL, 1, "no"));
    IS(TCPMIG_INVALID, tcpmig_agent_drained(NULL, 1, 0));
    assert(tcpmig_agent_fd(NULL) == -1 && strcmp(tcpmig_agent_host(NULL), "") == 0);
    tcpmig_agent_free(NULL);
    tcpmig_agent_free(&agent);

    IS(TCPMIG_INVALID, tcpmig_upgrade_begin(NULL, &upgrade, &fd));
    IS(TCPMIG_INVALID, tcpmig_upgrade_begin("/nowhere", &upgrade, NULL));
    IS(TCPMIG_INVALID, tcpmig_upgrade_ready(NULL));
    /* Nobody is there, and nobody can wait there. */
    IS(TCPMIG_OK, tcpmig_upgrade_begin("/nowhere/upgrade.sock", &upgrade, &fd));
    assert(fd == 0 && tcpmig_upgrade_fd(upgrade) >= 0 && tcpmig_upgrade_fd(NULL) == -1);
    IS(TCPMIG_INVALID, tcpmig_upgrade_listener(upgrade, "http", &fd));
    IS(TCPMIG_INVALID, tcpmig_upgrade_pass(upgrade, "http", -1));
    IS(TCPMIG_OK, tcpmig_upgrade_pass(upgrade, "http", 0));
    IS(TCPMIG_UNREACHABLE, tcpmig_upgrade_give(upgrade, 0, NULL, 1));
    IS(TCPMIG_UNREACHABLE, tcpmig_upgrade_finish(upgrade));
    IS(TCPMIG_INVALID, tcpmig_upgrade_take(upgrade, 7));
    IS(TCPMIG_INVALID, tcpmig_upgrade_refuse(upgrade, 7, "no"));
    event.size = 1;
    IS(TCPMIG_INVALID, tcpmig_upgrade_next_event(upgrade, &event));
    event.size = sizeof(event);
    IS(TCPMIG_OK, tcpmig_upgrade_next_event(upgrade, &event));
    assert(event.kind == TCPMIG_EVENT_NONE && event.fd == -1 && event.size == sizeof(event));
    IS(TCPMIG_INVALID, tcpmig_upgrade_layer(upgrade, 0, &layer));
    IS(TCPMIG_SYSTEM, tcpmig_upgrade_ready(upgrade));
    IS(TCPMIG_INVALID, tcpmig_upgrade_ready(upgrade));
    tcpmig_upgrade_free(&upgrade);
    assert(upgrade == NULL);
}

static void descriptors(struct tcpmig_locker *none)
{
    struct tcpmig_frozen *frozen[2];
    struct tcpmig_image *image = NULL;
    int pair[2], fds[2], codes[2], closed, opened = socket(AF_INET, SOCK_STREAM, 0);

    assert(opened >= 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    closed = dup(opened);
    close(closed);
    IS(TCPMIG_INVALID, tcpmig_probe(-1, NULL));
    IS(TCPMIG_INVALID, tcpmig_probe(closed, NULL));
    IS(TCPMIG_NOT_MOVABLE, tcpmig_probe(pair[0], NULL));
    IS(TCPMIG_NOT_MOVABLE, tcpmig_probe(opened, NULL));
    IS(TCPMIG_INVALID, tcpmig_freeze(closed, none, 1, &frozen[0]));
    IS(TCPMIG_NOT_MOVABLE, tcpmig_freeze(opened, none, 1, &frozen[0]));
    assert(fcntl(opened, F_GETFD) >= 0);
    fds[0] = opened;
    fds[1] = closed;
    IS(TCPMIG_SOME, tcpmig_freeze_many(fds, 2, none, 1, frozen, codes));
    assert(codes[0] == TCPMIG_NOT_MOVABLE && codes[1] == TCPMIG_INVALID && frozen[0] == NULL && frozen[1] == NULL);
    assert(strstr(tcpmig_last_error_of(0), "cannot be moved") != NULL);
    assert(strstr(tcpmig_last_error_of(1), "Bad file descriptor") != NULL);
    fds[1] = opened;
    IS(TCPMIG_INVALID, tcpmig_freeze_many(fds, 2, none, 1, frozen, codes));

    /* Half a head, and then nothing. */
    assert(write(pair[0], "tcpmig", 6) == 6);
    shutdown(pair[0], SHUT_WR);
    IS(TCPMIG_IMAGE, tcpmig_image_read(pair[1], &image));
    IS(TCPMIG_IMAGE, tcpmig_image_read(pair[1], &image));
    IS(TCPMIG_INVALID, tcpmig_image_read(closed, &image));
    IS(TCPMIG_SYSTEM, tcpmig_image_read(opened, &image));
    assert(tcpmig_last_errno() == ENOTCONN);
    close(opened);
    close(pair[0]);
    close(pair[1]);
}

static void structs(void)
{
    struct tcpmig_locker *locker = NULL;
    struct {
        struct tcpmig_lock_operations known;
        size_t later;
    } newer;
    struct tcpmig_lock_operations *operations = &newer.known;

    memset(&newer, 0, sizeof(newer));
    operations->lock = never_lock;
    operations->renew = never_renew;
    operations->unlock = never_unlock;
    operations->leave = never_leave;
    IS(TCPMIG_INVALID, tcpmig_locker_custom(operations, NULL, &locker));
    operations->size = sizeof(newer);
    IS(TCPMIG_OK, tcpmig_locker_custom(operations, NULL, &locker));
    tcpmig_locker_free(&locker);
    assert(locker == NULL);
    newer.later = 1;
    IS(TCPMIG_INVALID, tcpmig_locker_custom(operations, NULL, &locker));
    operations->size = sizeof(newer.known);
    operations->flags = 0x80;
    IS(TCPMIG_INVALID, tcpmig_locker_custom(operations, NULL, &locker));
    operations->flags = TCPMIG_LOCK_EXEMPTS;
    operations->leave = NULL;
    IS(TCPMIG_INVALID, tcpmig_locker_custom(operations, NULL, &locker));
    assert(strcmp(tcpmig_last_error(), "operations.leave is NULL") == 0);
    IS(TCPMIG_INVALID, tcpmig_locker_open("no such thing", &locker));
    IS(TCPMIG_INVALID, tcpmig_locker_open("\xff", &locker));
}

/* Every prefix of an image, and the image with each byte changed, is refused or taken, and nothing else happens. */
static void images(const char *path, struct tcpmig_locker *none)
{
    static char bytes[1 << 20];
    struct tcpmig_layer layer = TCPMIG_LAYER_INIT;
    struct tcpmig_image *image = NULL;
    struct tcpmig_prepared *prepared = NULL;
    const void *again;
    size_t length, at, known;
    FILE *file = fopen(path, "rb");

    assert(file != NULL);
    length = fread(bytes, 1, sizeof(bytes), file);
    fclose(file);
    IS(TCPMIG_OK, tcpmig_image_decode(bytes, length, &image));
    IS(TCPMIG_OK, tcpmig_image_bytes(image, &again, &known));
    assert(known == length && memcmp(again, bytes, length) == 0);
    IS(TCPMIG_INVALID, tcpmig_prepare(image, none, 1, 0x80, &prepared));
    IS(TCPMIG_INVALID, tcpmig_prepare(image, none, 0, 0, &prepared));
    IS(TCPMIG_INVALID, tcpmig_image_layer(image, 99, &layer));
    layer.size = 1;
    IS(TCPMIG_INVALID, tcpmig_image_layer(image, 0, &layer));
    tcpmig_image_free(&image);
    IS(TCPMIG_IMAGE, tcpmig_image_decode(bytes, length + 1, &image));
    /* Its queues are most of it. */
    for (at = 0; at < length; at += at < 1000 ? 1 : length / 50) {
        IS(TCPMIG_IMAGE, tcpmig_image_decode(bytes, at, &image));
        bytes[at] ^= 1;
        IS(TCPMIG_IMAGE, tcpmig_image_decode(bytes, length, &image));
        bytes[at] ^= 1;
    }
}

int main(int argc, char **argv)
{
    struct tcpmig_locker *none = NULL;

    assert(strcmp(tcpmig_last_error(), "") == 0 && tcpmig_last_errno() == 0);
    assert(strcmp(tcpmig_code_name(TCPMIG_OK), "TCPMIG_OK") == 0);
    assert(strcmp(tcpmig_code_name(-1), "unknown") == 0);
    IS(TCPMIG_OK, tcpmig_locker_open("none", &none));
    nothing_is_no_argument(none);
    nothing_is_no_agent_and_no_upgrade();
    descriptors(none);
    structs();
    if (argc > 1)
        images(argv[1], none);
    tcpmig_locker_free(&none);
    puts("fine");
    return 0;
}
