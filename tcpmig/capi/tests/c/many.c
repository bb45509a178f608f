/* Many connections at once, with a lock of one's own: half of them go on, the others are discarded and restored. */
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tcpmig.h>

#define COUNT 24

#define DO(call)                                                                                                         \
    do {                                                                                                                 \
        int got = (call);                                                                                                \
        if (got != TCPMIG_OK) {                                                                                          \
            fprintf(stderr, "%s:%d: %s: %s (%s)\n", __FILE__, __LINE__, #call, tcpmig_code_name(got), tcpmig_last_error()); \
            exit(1);                                                                                                     \
        }                                                                                                                \
    } while (0)

/* The client's end of each connection is quiet while the other is away, so that nothing has to be stopped: these count. */
struct counts {
    int held, locked, renewed, unlocked, left;
    uint16_t busy_port;
};

static int lock(void *context, const struct tcpmig_flow *flows, size_t count, uint32_t lease_ms, void **held)
{
    struct counts *counts = context;
    size_t i;

    assert(lease_ms == 30000);
    for (i = 0; i < count; i++)
        if (flows[i].remote_port == counts->busy_port)
            return EBUSY;
    *held = malloc(1);
    counts->held++;
    counts->locked++;
    return 0;
}

static int renew(void *context, void *held, uint32_t lease_ms)
{
    struct counts *counts = context;

    assert(held != NULL && lease_ms == 30000);
    counts->renewed++;
    return 0;
}

static int unlock(void *context, void *held)
{
    struct counts *counts = context;

    free(held);
    counts->held--;
    counts->unlocked++;
    return 0;
}

static void leave(void *context, void *held)
{
    struct counts *counts = context;

    free(held);
    counts->held--;
    counts->left++;
}

static void talk(int from, int to, const char *word)
{
    char got[16];
    size_t length = strlen(word), at = 0;

    assert(send(from, word, length, MSG_NOSIGNAL) == (ssize_t)length);
    while (at < length) {
        ssize_t more = recv(to, got + at, sizeof(got) - at, 0);

        assert(more > 0);
        at += (size_t)more;
    }
    assert(at == length && memcmp(got, word, length) == 0);
}

static void connections(int *clients, int *servers)
{
    struct sockaddr_in here;
    socklen_t length = sizeof(here);
    int i, listener = socket(AF_INET, SOCK_STREAM, 0);

    memset(&here, 0, sizeof(here));
    here.sin_family = AF_INET;
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert(bind(listener, (struct sockaddr *)&here, sizeof(here)) == 0 && listen(listener, COUNT) == 0);
    assert(getsockname(listener, (struct sockaddr *)&here, &length) == 0);
    for (i = 0; i < COUNT; i++) {
        clients[i] = socket(AF_INET, SOCK_STREAM, 0);
        assert(connect(clients[i], (struct sockaddr *)&here, sizeof(here)) == 0);
        servers[i] = accept(listener, NULL, NULL);
        assert(servers[i] >= 0);
        talk(clients[i], servers[i], "hello");
    }
    close(listener);
}

/* Locked in one step, captured while one of the peers talks, and kept: what it said is there. */
static void with_nftables(void)
{
    struct tcpmig_locker *nftables = NULL;
    struct tcpmig_frozen *frozen[COUNT];
    struct tcpmig_image *image = NULL;
    int clients[COUNT], servers[COUNT], codes[COUNT], i;
    char got[8];

    DO(tcpmig_locker_open("nftables", &nftables));
    connections(clients, servers);
    DO(tcpmig_freeze_many(servers, COUNT, nftables, 30000, frozen, codes));
    assert(send(clients[0], "word", 4, MSG_NOSIGNAL) == 4);
    assert(recv(servers[0], got, sizeof(got), MSG_DONTWAIT) < 0);
    for (i = 0; i < COUNT; i++) {
        DO(tcpmig_frozen_renew(frozen[i]));
        DO(tcpmig_capture(frozen[i], NULL, 0, &image));
        tcpmig_image_free(&image);
        DO(tcpmig_keep(&frozen[i]));
    }
    assert(recv(servers[0], got, 4, MSG_WAITALL) == 4 && memcmp(got, "word", 4) == 0);
    for (i = 0; i < COUNT; i++) {
        talk(servers[i], clients[i], "kept");
        close(clients[i]);
        close(servers[i]);
    }
    tcpmig_locker_free(&nftables);
}

int main(void)
{
    struct counts counts;
    struct tcpmig_lock_operations operations;
    struct tcpmig_locker *own = NULL;
    struct tcpmig_frozen *frozen[COUNT];
    struct tcpmig_image *images[COUNT / 2];
    struct tcpmig_prepared *prepared[COUNT / 2];
    struct tcpmig_probe probe = TCPMIG_PROBE_INIT;
    int clients[COUNT], servers[COUNT], codes[COUNT], i;

    memset(&counts, 0, sizeof(counts));
    memset(&operations, 0, sizeof(operations));
    operations.size = sizeof(operations);
    operations.flags = TCPMIG_LOCK_EXEMPTS;
    operations.lock = lock;
    operations.renew = renew;
    operations.unlock = unlock;
    operations.leave = leave;
    DO(tcpmig_locker_custom(&operations, &counts, &own));
    connections(clients, servers);

    /* One of them is locked by somebody else: the others are frozen nevertheless. */
    DO(tcpmig_probe(servers[0], &probe));
    assert(probe.state == 1 && probe.unread == 0 && probe.flow.family == AF_INET);
    counts.busy_port = probe.flow.remote_port;
    assert(tcpmig_freeze_many(servers, COUNT, own, 30000, frozen, codes) == TCPMIG_SOME);
    assert(codes[0] == TCPMIG_LOCKED && frozen[0] == NULL && codes[1] == TCPMIG_OK);
    assert(strstr(tcpmig_last_error_of(0), "already locked") != NULL && tcpmig_last_error_of(1)[0] == 0);
    assert(counts.held == COUNT - 1);
    counts.busy_port = 0;
    DO(tcpmig_freeze(servers[0], own, 30000, &frozen[0]));
    DO(tcpmig_frozen_renew(frozen[0]));
    assert(counts.renewed == 1);
    assert(tcpmig_redirect(frozen[0], "127.0.0.2", 1000) != TCPMIG_OK);

    /* Nothing is discarded of which there is no image. */
    assert(tcpmig_discard(&frozen[0]) == TCPMIG_MOVED_ON && frozen[0] != NULL);
    for (i = 0; i < COUNT / 2; i++) {
        DO(tcpmig_capture(frozen[i], NULL, 0, &images[i]));
        DO(tcpmig_discard(&frozen[i]));
        assert(frozen[i] == NULL);
    }
    for (; i < COUNT; i++) {
        DO(tcpmig_keep(&frozen[i]));
        talk(servers[i], clients[i], "kept");
        talk(clients[i], servers[i], "kept");
    }
    assert(counts.held == 0 && counts.left == COUNT / 2 && counts.unlocked == COUNT / 2);

    DO(tcpmig_prepare_many((const struct tcpmig_image *const *)images, COUNT / 2, own, 30000, 0, prepared, codes));
    /* Taken back without a packet, and built again. */
    tcpmig_prepared_free(&prepared[0]);
    assert(prepared[0] == NULL && counts.held == COUNT / 2 - 1);
    DO(tcpmig_prepare(images[0], own, 30000, 0, &prepared[0]));
    DO(tcpmig_prepared_renew(prepared[0]));
    for (i = 0; i < COUNT / 2; i++) {
        struct tcpmig_restored *restored = NULL;
        const void *unwritten;
        size_t length;

        DO(tcpmig_activate(&prepared[i], &servers[i], &restored));
        DO(tcpmig_restored_unwritten(restored, &unwritten, &length));
        assert(prepared[i] == NULL && length == 0 && tcpmig_restored_warning(restored, 0) == NULL);
        tcpmig_restored_free(&restored);
        tcpmig_image_free(&images[i]);
        talk(servers[i], clients[i], "restored");
        talk(clients[i], servers[i], "restored");
    }
    assert(counts.held == 0);
    for (i = 0; i < COUNT; i++) {
        close(clients[i]);
        close(servers[i]);
    }
    tcpmig_locker_free(&own);
    with_nftables();
    puts("fine");
    return 0;
}
