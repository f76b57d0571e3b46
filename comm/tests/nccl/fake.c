/* The functions of NCCL that comm binds, for ranks that are threads of one process, on memory of the host. What a call starts is done once
 * all members have made it: a stream is a counter of what is under way on it. `fake_set` and `fake_get` are for tests alone. */

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANKS = 8, SUCCESS = 0, UNHANDLED = 1, INVALID = 4, IN_PROGRESS = 7 };
enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, NUM_KINDS };

typedef struct { char bytes[128]; } Id;
typedef struct { size_t size; unsigned magic, version; int blocking; } Config;
typedef struct { int under_way; } Stream;
typedef struct Comm Comm;
typedef struct World World;

/* One collective, until all members have come to it. */
typedef struct Call {
    int kind, dtype, op, root, arrived;
    size_t count;
    const void *send[MAX_RANKS];
    void *recv[MAX_RANKS];
    Stream *stream[MAX_RANKS];
    unsigned long number;
    struct Call *next;
} Call;

/* One message, until both sides have come to it. */
typedef struct Message {
    int from, to, has_send, has_recv;
    size_t bytes;
    const void *send;
    void *recv;
    Stream *streams[2];
    struct Message *next;
} Message;

struct World {
    Id id;
    int size, entered, splitting;
    int colors[MAX_RANKS], keys[MAX_RANKS];
    Comm *parts[MAX_RANKS], *members[MAX_RANKS], **outs[MAX_RANKS];
    Call *calls;
    Message *messages;
    World *next;
};

struct Comm {
    World *world;
    int rank, is_made, is_splitting, polls, is_finalized;
    unsigned long calls;
    char last[128];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static World *worlds;
static long next_id, version = 22809, init_code, init_polls, call_code, call_polls, async_error, aborted, destroyed;

static long *number(const char *name) {
    struct { const char *name; long *value; } all[] = {
        {"version", &version}, {"init_code", &init_code}, {"init_polls", &init_polls}, {"call_code", &call_code},
        {"call_polls", &call_polls}, {"async_error", &async_error}, {"aborted", &aborted}, {"destroyed", &destroyed},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (strcmp(all[i].name, name) == 0) return all[i].value;
    abort();
}

void fake_set(const char *name, long value) {
    pthread_mutex_lock(&lock);
    *number(name) = value;
    pthread_mutex_unlock(&lock);
}

long fake_get(const char *name) {
    pthread_mutex_lock(&lock);
    long value = *number(name);
    pthread_mutex_unlock(&lock);
    return value;
}

/* How much is under way on a stream. */
int fake_under_way(Stream *stream) {
    pthread_mutex_lock(&lock);
    int count = stream->under_way;
    pthread_mutex_unlock(&lock);
    return count;
}

int ncclGetVersion(int *out) {
    *out = (int)version;
    return SUCCESS;
}

int ncclGetUniqueId(Id *id) {
    pthread_mutex_lock(&lock);
    memset(id, 0, sizeof *id);
    next_id++;
    memcpy(id->bytes, &next_id, sizeof next_id);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

const char *ncclGetErrorString(int code) {
    return code == UNHANDLED ? "unhandled cuda error" : code == 6 ? "remote process exited or there was a network error" : "some error";
}

const char *ncclGetLastError(Comm *comm) { return comm ? comm->last : "the last words of no communicator"; }

static World *new_world(int size) {
    World *world = calloc(1, sizeof *world);
    world->size = size;
    world->next = worlds;
    return worlds = world;
}

int ncclCommInitRankConfig(Comm **out, int size, Id id, int rank, Config *config) {
    if (config->magic != 0xcafebeef || config->version != 21700 || config->size < sizeof *config || config->blocking) return INVALID;
    pthread_mutex_lock(&lock);
    Comm *comm = calloc(1, sizeof *comm);
    *out = comm;
    int code = (int)init_code;
    if (code != SUCCESS) {
        strcpy(comm->last, "no device");
    } else {
        World *world = worlds;
        while (world && memcmp(&world->id, &id, sizeof id) != 0) world = world->next;
        if (!world) {
            world = new_world(size);
            world->id = id;
        }
        world->entered++;
        comm->world = world;
        comm->rank = rank;
        comm->is_made = 1;
        comm->polls = (int)init_polls;
        code = IN_PROGRESS;
    }
    pthread_mutex_unlock(&lock);
    return code;
}

int ncclCommSplit(Comm *comm, int color, int key, Comm **out, Config *config) {
    if (config->magic != 0xcafebeef) return INVALID;
    pthread_mutex_lock(&lock);
    World *world = comm->world;
    Comm *part = calloc(1, sizeof *part);
    *out = NULL;
    comm->is_splitting = 1;
    world->colors[comm->rank] = color;
    world->keys[comm->rank] = key;
    world->parts[comm->rank] = part;
    world->members[comm->rank] = comm;
    world->outs[comm->rank] = out;
    if (++world->splitting == world->size) {
        world->splitting = 0;
        for (int i = 0; i < world->size; i++) {
            Comm *member = world->parts[i];
            if (member->world) continue;
            World *smaller = new_world(0);
            for (int j = i; j < world->size; j++) {
                if (world->colors[j] != world->colors[i]) continue;
                smaller->size++;
                smaller->entered++;
                world->parts[j]->world = smaller;
                for (int k = 0; k < world->size; k++)
                    world->parts[j]->rank += world->colors[k] == world->colors[j] && world->keys[k] < world->keys[j];
            }
        }
        /* Only now, and where the caller may be gone. */
        for (int i = 0; i < world->size; i++) {
            world->parts[i]->is_made = 1;
            *world->outs[i] = world->parts[i];
            world->members[i]->is_splitting = 0;
        }
    }
    pthread_mutex_unlock(&lock);
    return IN_PROGRESS;
}

int ncclCommGetAsyncError(Comm *comm, int *state) {
    pthread_mutex_lock(&lock);
    *state = SUCCESS;
    if (async_error) {
        *state = (int)async_error;
        strcpy(comm->last, "a peer is gone");
    } else if (comm->is_made && (!comm->world || comm->world->entered < comm->world->size)) {
        *state = IN_PROGRESS;
    } else if (!comm->is_made || comm->is_splitting) {
        *state = IN_PROGRESS;
    } else if (comm->polls > 0) {
        comm->polls--;
        *state = IN_PROGRESS;
    }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

/* What waits for others on this end is given up. */
static void give_up(Comm *comm) {
    World *world = comm->world;
    if (!world) return;
    for (Call *call = world->calls; call; call = call->next) {
        Stream *stream = call->stream[comm->rank];
        if (stream) stream->under_way--;
        call->stream[comm->rank] = NULL;
    }
    for (Message *message = world->messages; message; message = message->next)
        for (int side = 0; side < 2; side++) {
            int rank = side == 0 ? message->from : message->to;
            if (rank == comm->rank && message->streams[side]) {
                message->streams[side]->under_way--;
                message->streams[side] = NULL;
            }
        }
}

int ncclCommAbort(Comm *comm) {
    pthread_mutex_lock(&lock);
    give_up(comm);
    aborted++;
    pthread_mutex_unlock(&lock);
    free(comm);
    return SUCCESS;
}

int ncclCommFinalize(Comm *comm) {
    pthread_mutex_lock(&lock);
    comm->is_finalized = 1;
    comm->polls = (int)call_polls;
    pthread_mutex_unlock(&lock);
    return IN_PROGRESS;
}

int ncclCommDestroy(Comm *comm) {
    pthread_mutex_lock(&lock);
    int code = comm->is_finalized ? SUCCESS : INVALID;
    destroyed++;
    pthread_mutex_unlock(&lock);
    free(comm);
    return code;
}

static size_t bytes_of(int dtype) { return dtype == 8 ? 8 : dtype == 7 ? 4 : dtype == 9 ? 2 : 1; }

static double get(const void *values, int dtype, size_t i) {
    if (dtype == 8) return ((const double *)values)[i];
    if (dtype == 7) return ((const float *)values)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)values)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* bf16 values of tests are exact. */
static void put(void *values, int dtype, size_t i, double value) {
    float narrow = (float)value;
    uint32_t bits;
    memcpy(&bits, &narrow, 4);
    if (dtype == 8) ((double *)values)[i] = value;
    else if (dtype == 7) ((float *)values)[i] = narrow;
    else ((uint16_t *)values)[i] = (uint16_t)(bits >> 16);
}

/* Over all members, in their order; in fp32 for fp32. */
static double reduced(const Call *call, int size, size_t i) {
    double sum = get(call->send[0], call->dtype, i);
    for (int rank = 1; rank < size; rank++) {
        double value = get(call->send[rank], call->dtype, i);
        if (call->op == 2) sum = value > sum ? value : sum;
        else sum = call->dtype == 7 ? (double)((float)sum + (float)value) : sum + value;
    }
    return sum;
}

static void run(const Call *call, int size) {
    size_t width = bytes_of(call->dtype), count = call->count;
    size_t total = call->kind == ALL_REDUCE || call->kind == BROADCAST ? count : count * (size_t)size;
    char *result = malloc(total * width + 1);
    for (size_t i = 0; i < total; i++) {
        if (call->kind == ALL_GATHER) memcpy(result + i * width, (const char *)call->send[i / count] + i % count * width, width);
        else if (call->kind == BROADCAST) memcpy(result + i * width, (const char *)call->send[call->root] + i * width, width);
        else put(result, call->dtype, i, reduced(call, size, i));
    }
    for (int rank = 0; rank < size; rank++) {
        if (call->kind == REDUCE_SCATTER) memcpy(call->recv[rank], result + (size_t)rank * count * width, count * width);
        else memcpy(call->recv[rank], result, total * width);
    }
    free(result);
}

static int enqueue(Comm *comm, int kind, const void *send, void *recv, size_t count, int dtype, int op, int root, Stream *stream) {
    pthread_mutex_lock(&lock);
    World *world = comm->world;
    if (call_code != SUCCESS) {
        strcpy(comm->last, "a bad argument");
        pthread_mutex_unlock(&lock);
        return (int)call_code;
    }
    Call **at = &world->calls;
    while (*at && (*at)->number != comm->calls) at = &(*at)->next;
    if (!*at) {
        *at = calloc(1, sizeof **at);
        **at = (Call){.kind = kind, .count = count, .dtype = dtype, .op = op, .root = root, .number = comm->calls};
    }
    Call *call = *at;
    comm->calls++;
    comm->polls = (int)call_polls;
    call->send[comm->rank] = send;
    call->recv[comm->rank] = recv;
    call->stream[comm->rank] = stream;
    stream->under_way++;
    if (++call->arrived == world->size) {
        run(call, world->size);
        for (int rank = 0; rank < world->size; rank++)
            if (call->stream[rank]) call->stream[rank]->under_way--;
        *at = call->next;
        free(call);
    }
    int code = comm->polls > 0 ? IN_PROGRESS : SUCCESS;
    pthread_mutex_unlock(&lock);
    return code;
}

int ncclAllReduce(const void *send, void *recv, size_t count, int dtype, int op, Comm *comm, Stream *stream) {
    return enqueue(comm, ALL_REDUCE, send, recv, count, dtype, op, 0, stream);
}

int ncclReduceScatter(const void *send, void *recv, size_t count, int dtype, int op, Comm *comm, Stream *stream) {
    return enqueue(comm, REDUCE_SCATTER, send, recv, count, dtype, op, 0, stream);
}

int ncclAllGather(const void *send, void *recv, size_t count, int dtype, Comm *comm, Stream *stream) {
    return enqueue(comm, ALL_GATHER, send, recv, count, dtype, 0, 0, stream);
}

int ncclBroadcast(const void *send, void *recv, size_t count, int dtype, int root, Comm *comm, Stream *stream) {
    return enqueue(comm, BROADCAST, send, recv, count, dtype, 0, root, stream);
}

static int pass(Comm *comm, int peer, int is_send, const void *send, void *recv, size_t bytes, Stream *stream) {
    pthread_mutex_lock(&lock);
    int from = is_send ? comm->rank : peer, to = is_send ? peer : comm->rank;
    Message **at = &comm->world->messages;
    while (*at && ((*at)->from != from || (*at)->to != to || (is_send ? (*at)->has_send : (*at)->has_recv))) at = &(*at)->next;
    if (!*at) {
        *at = calloc(1, sizeof **at);
        **at = (Message){.from = from, .to = to, .bytes = bytes};
    }
    Message *message = *at;
    message->streams[is_send ? 0 : 1] = stream;
    stream->under_way++;
    if (is_send) message->has_send = 1, message->send = send;
    else message->has_recv = 1, message->recv = recv;
    if (message->has_send && message->has_recv) {
        memcpy(message->recv, message->send, message->bytes);
        for (int side = 0; side < 2; side++)
            if (message->streams[side]) message->streams[side]->under_way--;
        *at = message->next;
        free(message);
    }
    comm->polls = (int)call_polls;
    int code = comm->polls > 0 ? IN_PROGRESS : SUCCESS;
    pthread_mutex_unlock(&lock);
    return code;
}

int ncclSend(const void *send, size_t count, int dtype, int peer, Comm *comm, Stream *stream) {
    return pass(comm, peer, 1, send, NULL, count * bytes_of(dtype), stream);
}

int ncclRecv(void *recv, size_t count, int dtype, int peer, Comm *comm, Stream *stream) {
    return pass(comm, peer, 0, NULL, recv, count * bytes_of(dtype), stream);
}
