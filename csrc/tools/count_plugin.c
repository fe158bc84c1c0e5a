/* Counts what an AArch64 program executes under qemu: all instructions, and the vector ones by kind.
 *
 *   cc -O2 -shared -fPIC csrc/tools/count_plugin.c -o count_plugin.so
 *   qemu-aarch64 -plugin ./count_plugin.so -d plugin -D counts.txt program
 *   qemu-aarch64 -plugin ./count_plugin.so,blocks=on -d plugin -D counts.txt program
 *
 * The second also prints every block of instructions that ran: its address, how often, and its words.
 *
 * Counts are the same to the last one in every run of a program of one thread, where times would be noise. The little of
 * qemu's plugin interface that it needs (version 1 of it, of qemu 4.2 to 8.2) is declared here: distributions do not ship
 * the header with the emulator. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t,
                                                  void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern void qemu_plugin_outs(const char *);

EXPORT int qemu_plugin_version = 1;

enum { kAll, kLoads, kStores, kVector, kMultiplyAdd, kKinds };
static const char *const kNames[kKinds] = {"instructions", "vector_loads", "vector_stores", "vector", "multiply_adds"};

/* A block that qemu has translated, which may happen to the same instructions more than once. */
struct Block {
  struct Block *next;
  uint64_t address, runs, kinds[kKinds];
  size_t length;
  uint32_t words[];
};
static struct Block *blocks;
static bool prints_blocks;

/* Kinds by the top bits of the encoding (Arm's manual, "A64 instruction set encoding"). */
static void Classify(uint32_t word, uint64_t *kinds) {
  const uint32_t group = word >> 25 & 15;
  ++kinds[kAll];
  if ((group & 5) == 4 && word >> 26 & 1) { /* loads and stores of vector registers */
    const bool literal = (word & 0x3b000000) == 0x18000000, structure = (word & 0xbe000000) == 0x0c000000;
    const bool pair = (word & 0x3a000000) == 0x28000000;
    const bool load = literal || (structure || pair ? word >> 22 & 1 : word >> 22 & 1);
    ++kinds[load ? kLoads : kStores];
  } else if ((group & 7) == 7) { /* arithmetic on vector registers, scalar floating point with it */
    ++kinds[kVector];
    const bool fmla_vector = (word & 0x9f20fc00) == 0x0e20cc00;  /* FMLA, FMLS Vd.T, Vn.T, Vm.T */
    const bool fmla_element = (word & 0x9f80b400) == 0x0f801000; /* ... Vm.T[lane] */
    const bool fmadd = (word & 0xff000000) == 0x1f000000;        /* FMADD and its relatives, scalar */
    kinds[kMultiplyAdd] += fmla_vector || fmla_element || fmadd;
  }
}

static void Translate(qemu_plugin_id_t id, struct qemu_plugin_tb *translated) {
  const size_t length = qemu_plugin_tb_n_insns(translated);
  struct Block *const block = calloc(1, sizeof *block + length * sizeof *block->words);
  (void)id;
  if (block == NULL) abort(); /* counts that lack a block would be wrong */
  block->address = qemu_plugin_tb_vaddr(translated);
  block->length = length;
  for (size_t k = 0; k < length; ++k) {
    memcpy(&block->words[k], qemu_plugin_insn_data(qemu_plugin_tb_get_insn(translated, k)), sizeof *block->words);
    Classify(block->words[k], block->kinds);
  }
  block->next = blocks;
  blocks = block;
  qemu_plugin_register_vcpu_tb_exec_inline(translated, QEMU_PLUGIN_INLINE_ADD_U64, &block->runs, 1);
}

static void Finish(qemu_plugin_id_t id, void *unused) {
  char line[80];
  (void)id;
  (void)unused;
  for (int kind = 0; kind < kKinds; ++kind) {
    uint64_t count = 0;
    for (const struct Block *block = blocks; block != NULL; block = block->next) count += block->runs * block->kinds[kind];
    snprintf(line, sizeof line, "%s %llu\n", kNames[kind], (unsigned long long)count);
    qemu_plugin_outs(line);
  }
  for (const struct Block *block = blocks; prints_blocks && block != NULL; block = block->next) {
    if (block->runs == 0) continue;
    snprintf(line, sizeof line, "block %llx %llu", (unsigned long long)block->address, (unsigned long long)block->runs);
    qemu_plugin_outs(line);
    for (size_t k = 0; k < block->length; ++k) {
      snprintf(line, sizeof line, " %08x", block->words[k]);
      qemu_plugin_outs(line);
    }
    qemu_plugin_outs("\n");
  }
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info *info, int count, char **words) {
  (void)info;
  for (int k = 0; k < count; ++k) prints_blocks |= strcmp(words[k], "blocks=on") == 0;
  qemu_plugin_register_vcpu_tb_trans_cb(id, Translate);
  qemu_plugin_register_atexit_cb(id, Finish, NULL);
  return 0;
}
