use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use proptest::prelude::*;
use wasmtime::{Engine, Func, Instance, Memory, Module, Store, Trap, Val};

use super::super::engines;
use super::*;

/// A page of linear memory.
const PAGE: usize = 64 << 10;

/// Sixteen pages, so that growth to the capacity is quick.
const CAPACITY: usize = 1 << 20;

/// Slot size: the capacity rounded up to page tables, and one page table of guard pages.
const SLOT: u64 = 4 << 20;

const STACK: usize = 256 << 10;
const STACK_GUARD: usize = 64 << 10;

/// Every kind of memory access at every out-of-bounds address traps, before and after growth to the capacity of the
/// slot; the memories of the four neighbours are unchanged.
#[test]
fn out_of_bounds_accesses_trap() {
    for (index, declaration) in [("i32", "1"), ("i32", "1 1"), ("i32", "1 32"), ("i64", "i64 1"), ("i64", "i64 1 1")] {
        let engine = TestEngine::of(5);
        let mut guests: Vec<Guest> = (0..5).map(|_| engine.guest(index, declaration)).collect();
        for (number, guest) in guests.iter_mut().enumerate() {
            guest.fill(number as u8 + 1);
        }
        let (first, rest) = guests.split_at_mut(2);
        let (middle, last) = rest.split_first_mut().unwrap();
        let mut tried = middle.try_out_of_bounds();
        middle.grow_to_the_end();
        middle.fill(3);
        tried += middle.try_out_of_bounds();
        assert!(tried >= 300, "{tried}");
        for (guest, byte) in first.iter().zip([1, 2]).chain(last.iter().zip([4, 5])) {
            assert!(is(guest.bytes(), byte), "({declaration}) of {byte} was changed");
        }
        assert!(is(middle.bytes(), 3));
    }
}

/// A warm slot is zero, in the initial memory and after growth.
#[test]
fn a_warm_slot_is_zero() {
    let engine = TestEngine::of(1);
    for _ in 0..3 {
        let mut guest = engine.guest("i32", "2");
        assert!(is(guest.bytes(), 0));
        guest.grow_to_the_end();
        assert_eq!(guest.bytes().len(), CAPACITY);
        assert!(is(guest.bytes(), 0));
        guest.fill(0xaa);
    }
}

/// A memory grows to its capacity and not beyond; a refused growth leaves it unchanged.
#[test]
fn growth_is_limited_to_the_slot() {
    let engine = TestEngine::of(1);
    let mut guest = engine.guest("i32", "1");
    assert_eq!(guest.grow(CAPACITY / PAGE), -1);
    assert_eq!(guest.grow(60_000), -1);
    assert_eq!(guest.grow(CAPACITY / PAGE - 1), 1);
    assert_eq!(guest.grow(1), -1);
    assert_eq!(guest.grow(0), (CAPACITY / PAGE) as i64);
}

/// When all slots are in use, the next instance is refused with the reason; a dropped instance frees its slot.
#[test]
fn a_full_allocator_refuses_and_recovers() {
    let engine = TestEngine::of(2);
    let (first, _second) = (engine.guest("i32", "1"), engine.guest("i32", "1"));
    let refused = engine.try_guest("i32", "1").err().unwrap();
    assert!(format!("{refused:#}").contains("all 2 memory slots are in use"), "{refused:#}");
    drop(first);
    engine.guest("i32", "1");
}

/// The same for stacks: each store keeps one after its first call.
#[tokio::test]
async fn full_stack_slots_refuse_and_recover() {
    let engine = TestEngine::with(8, 2);
    let enter = async |guest: &mut Guest| guest.call_async("grow", &[Val::I32(0)]).await;
    let mut guests: Vec<Guest> = (0..3).map(|_| engine.guest("i32", "1")).collect();
    enter(&mut guests[0]).await.unwrap();
    enter(&mut guests[1]).await.unwrap();
    let refused = enter(&mut guests[2]).await.unwrap_err();
    assert!(format!("{refused:#}").contains("all 2 stack slots are in use"), "{refused:#}");
    guests.remove(0);
    enter(&mut guests[1]).await.unwrap();
}

/// A memory with a maximum of zero pages takes no slot, and every access traps.
#[test]
fn an_empty_memory_takes_no_slot() {
    let engine = TestEngine::of(1);
    let mut empty = engine.guest("i32", "0 0");
    assert_eq!(engine.memories.taken(), 0);
    assert_eq!(empty.grow(1), -1);
    empty.try_out_of_bounds();
    engine.guest("i32", "1");
}

/// An engine that relies on guarded or reserved address space, and would omit bounds checks, gets no memory.
#[test]
fn engines_without_bounds_checks_are_refused() {
    let memories = Memories::map(1, CAPACITY).unwrap();
    let new = |minimum, reserved, guard| {
        memories.new_memory(MemoryType::new(1, None), minimum, None, reserved, guard).map(|memory| memory.byte_size())
    };
    assert!(new(PAGE, Some(PAGE), 0).unwrap_err().contains("came Some(65536) reserved bytes"));
    assert!(new(PAGE, Some(0), PAGE).unwrap_err().contains("65536 guarded bytes"));
    assert!(new(CAPACITY + PAGE, Some(0), 0).unwrap_err().contains("at most 1048576 bytes"));
    assert_eq!(new(CAPACITY, Some(0), 0).unwrap(), CAPACITY);
    assert_eq!(new(CAPACITY, None, 0).unwrap(), CAPACITY);

    let stacks = Stacks::map(1, STACK, STACK_GUARD).unwrap();
    assert!(stacks.new_stack(STACK + 1, true).is_err());
    let stack = stacks.new_stack(STACK, true).unwrap();
    assert_eq!((stack.range().len(), stack.range().end), (STACK, stack.top().addr()));
    assert_eq!(stack.guard_range().end.addr(), stack.range().start);
}

/// Endless recursion traps, on a stack in a slot as on any other; the adjacent stack is unchanged.
#[tokio::test]
async fn endless_recursion_is_a_trap() {
    let engine = TestEngine::of(2);
    let (mut culprit, mut bystander) = (engine.guest("i32", "1"), engine.guest("i32", "1"));
    bystander.call_async("grow", &[Val::I32(0)]).await.unwrap();
    let error = culprit.call_async("recurse", &[]).await.unwrap_err();
    assert_eq!(error.downcast_ref::<Trap>(), Some(&Trap::StackOverflow), "{error:?}");
    bystander.call_async("grow", &[Val::I32(1)]).await.unwrap();
}

/// Ten thousand instances are created and dropped, a thousand at a time: they add no mapping, and their resident pages
/// are released. In a process of its own, because it counts mappings, and other tests create and drop theirs.
#[test]
fn churn_releases_all_pages() {
    const CASE: &str = "POLYGATE_TEST_CHURN";
    if std::env::var_os(CASE).is_some() {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(churn());
        return;
    }
    let child = this_test_again("churn_releases_all_pages", CASE, "1");
    assert!(child.status.success(), "{child:?}");
    assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"), "{child:?}");
}

async fn churn() {
    let engine = TestEngine::of(1000);
    let allocators = [&engine.memories, &engine.stacks];
    let mappings = allocators.map(|allocator| resident(allocator).mappings);
    let module = engine.module("i32", "1");
    for _ in 0..10 {
        let mut guests = Vec::new();
        for _ in 0..1000 {
            let mut guest = engine.instance_of(&module, "i32").unwrap();
            assert_eq!(guest.call_async("grow", &[Val::I32(1)]).await.unwrap(), Some(1));
            guest.fill(1);
            guests.push(guest);
        }
        for (allocator, kib_each) in allocators.into_iter().zip([128..=128, 4..=16]) {
            assert_eq!(allocator.taken(), 1000);
            assert!(kib_each.contains(&(resident(allocator).kib / 1000)), "{:?}", resident(allocator));
        }
        assert_eq!(allocators.map(|allocator| resident(allocator).mappings), mappings);
    }
    for allocator in allocators {
        assert_eq!(allocator.taken(), 0);
        assert_eq!(allocator.leaked.load(Ordering::Relaxed), 0);
        assert_eq!(allocator.free.lock().first_cold, 1000, "no more slots than live instances");
        assert_eq!(resident(allocator).kib, 0);
    }
    assert_eq!(allocators.map(|allocator| resident(allocator).mappings), mappings);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In any order of creation, growth and drop, no two memories share a byte, and new bytes are zero.
    #[test]
    fn memories_are_disjoint_and_new_ones_are_zero(steps in prop::collection::vec((0..4usize, 0..20usize), 1..40)) {
        let memories = Memories::map(4, CAPACITY).unwrap();
        let mut live: [Option<Box<dyn LinearMemory>>; 4] = Default::default();
        for (number, pages) in steps {
            let fill = number as u8 + 1;
            let bytes = pages * PAGE;
            match live[number].take() {
                None if bytes > CAPACITY => assert!(memories.memory(bytes, None).is_err()),
                None => {
                    let memory = memories.memory(bytes, None).unwrap();
                    assert!(is(bytes_of(&*memory), 0));
                    live[number] = Some(memory);
                }
                Some(mut memory) => {
                    let before = memory.byte_size();
                    if bytes < before {
                        continue;
                    }
                    let grown = memory.grow_to(bytes);
                    assert_eq!(grown.is_ok(), bytes <= CAPACITY);
                    assert!(is(&bytes_of(&*memory)[before..], 0));
                    live[number] = Some(memory);
                }
            }
            if let Some(memory) = &mut live[number] {
                bytes_of_mut(&mut **memory).fill(fill);
            }
            for (number, memory) in live.iter().enumerate() {
                assert!(memory.iter().all(|memory| is(bytes_of(&**memory), number as u8 + 1)));
            }
        }
    }
}

/// Accesses around memories and stacks raise SIGSEGV, each tried in a child process.
#[test]
fn accesses_around_slots_fault() {
    const CASE: &str = "POLYGATE_TEST_TOUCH";
    type Touch = fn(&Memories, &Stacks);
    let cases: [(&str, Touch, Option<i32>); 9] = [
        ("the last byte of a memory", |memories, _| read(last_byte(memories)), None),
        ("after a memory", |memories, _| read(last_byte(memories).wrapping_add(1)), SEGV),
        ("after a memory that has grown", |memories, _| read(last_byte_after_growth(memories).wrapping_add(1)), SEGV),
        (
            "the last byte of a memory's guard pages",
            |memories, _| read(start(memories).wrapping_add((2 << 20) - 1)),
            SEGV,
        ),
        ("before all memories", |memories, _| read(start(memories).wrapping_sub(1)), SEGV),
        ("a margin before them", |memories, _| read(start(memories).wrapping_sub(MARGIN_BYTES)), SEGV),
        ("after all memories", |memories, _| read(end(&memories.allocator)), SEGV),
        ("the lowest byte of a stack", |_, stacks| write(lowest_byte(stacks)), None),
        ("below a stack", |_, stacks| write(lowest_byte(stacks).wrapping_sub(1)), SEGV),
    ];
    if let Ok(wanted) = std::env::var(CASE) {
        let (_, touch, _) = cases.into_iter().find(|(name, ..)| *name == wanted).unwrap();
        let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Core, no_core).unwrap();
        touch(&Memories::map(2, CAPACITY).unwrap(), &Stacks::map(2, STACK, STACK_GUARD).unwrap());
        return;
    }
    for (name, _, signal) in cases {
        let child = this_test_again("accesses_around_slots_fault", CASE, name);
        assert_eq!(child.status.signal(), signal, "{name}: {child:?}");
        assert_eq!(child.status.success(), signal.is_none(), "{name}: {child:?}");
    }
}

/// Runs one of these tests alone in a process of its own, with `value` in its environment to select the case.
fn this_test_again(test: &str, variable: &str, value: &str) -> Output {
    let test = format!("handler::wasm::slot_allocator::tests::{test}");
    let this = std::env::current_exe().unwrap();
    Command::new(this).args([&test, "--exact"]).env(variable, value).output().unwrap()
}

const SEGV: Option<i32> = Some(libc::SIGSEGV);

/// An engine with few memory and stack slots, configured as the gateway's small engine.
struct TestEngine {
    engine: Engine,
    memories: Arc<SlotAllocator>,
    stacks: Arc<SlotAllocator>,
}

impl TestEngine {
    fn of(slots: usize) -> Self {
        Self::with(slots, slots)
    }

    fn with(memories: usize, stacks: usize) -> Self {
        let memories = Memories::map(memories, CAPACITY).unwrap();
        let stacks = Stacks::map(stacks, engines::STACK_BYTES, STACK_GUARD).unwrap();
        let allocators = (Arc::clone(&memories.allocator), Arc::clone(&stacks.allocator));
        assert_eq!(allocators.0.slot_bytes as u64, SLOT);
        let engine = Engine::new(&engines::dense((memories, stacks))).unwrap();
        Self { engine, memories: allocators.0, stacks: allocators.1 }
    }

    fn guest(&self, index: &'static str, memory: &str) -> Guest {
        self.try_guest(index, memory).unwrap()
    }

    fn try_guest(&self, index: &'static str, memory: &str) -> wasmtime::Result<Guest> {
        self.instance_of(&self.module(index, memory), index)
    }

    fn module(&self, index: &str, memory: &str) -> Module {
        let text = PROBE.replace("$memory", memory).replace("$i", index).replace("$slot", &SLOT.to_string());
        Module::new(&self.engine, wat::parse_str(text).unwrap()).unwrap()
    }

    fn instance_of(&self, module: &Module, index: &'static str) -> wasmtime::Result<Guest> {
        let mut store = Store::new(&self.engine, ());
        store.set_epoch_deadline(1_000_000);
        let instance = Instance::new(&mut store, module, &[])?;
        let memory = instance.get_memory(&mut store, "memory").unwrap();
        Ok(Guest { store, instance, memory, index })
    }
}

/// Every kind of memory access in WebAssembly, each at an address of the caller's choice.
const PROBE: &str = r#"(module
    (memory (export "memory") $memory)
    (data $data "\01")
    (func (export "load8") (param $i) (drop (i32.load8_u (local.get 0))))
    (func (export "load64") (param $i) (drop (i64.load (local.get 0))))
    (func (export "load128") (param $i) (drop (v128.load (local.get 0))))
    (func (export "load a slot further") (param $i) (drop (i32.load8_u offset=$slot (local.get 0))))
    (func (export "load far off") (param $i) (drop (i32.load8_u offset=0xffffffff (local.get 0))))
    (func (export "store8") (param $i) (i32.store8 (local.get 0) (i32.const 0xee)))
    (func (export "store64") (param $i) (i64.store (local.get 0) (i64.const -1)))
    (func (export "store128") (param $i) (v128.store (local.get 0) (v128.const i64x2 -1 -1)))
    (func (export "store a slot further") (param $i) (i32.store8 offset=$slot (local.get 0) (i32.const 0xee)))
    (func (export "store far off") (param $i) (i32.store8 offset=0xffffffff (local.get 0) (i32.const 0xee)))
    (func (export "fill") (param $i) (memory.fill (local.get 0) (i32.const 0xee) ($i.const 1)))
    (func (export "fill a slot") (param $i) (memory.fill (local.get 0) (i32.const 0xee) ($i.const $slot)))
    (func (export "copy to") (param $i) (memory.copy (local.get 0) ($i.const 0) ($i.const 1)))
    (func (export "copy from") (param $i) (memory.copy ($i.const 0) (local.get 0) ($i.const 1)))
    (func (export "init") (param $i) (memory.init $data (local.get 0) (i32.const 0) (i32.const 1)))
    (func (export "grow") (param $i) (result $i) (memory.grow (local.get 0)))
    (func $recurse (export "recurse") (call $recurse) (call $recurse)))"#;

const ACCESSES: [&str; 15] = [
    "load8",
    "load64",
    "load128",
    "load a slot further",
    "load far off",
    "store8",
    "store64",
    "store128",
    "store a slot further",
    "store far off",
    "fill",
    "fill a slot",
    "copy to",
    "copy from",
    "init",
];

struct Guest {
    store: Store<()>,
    instance: Instance,
    memory: Memory,
    index: &'static str,
}

impl Guest {
    fn bytes(&self) -> &[u8] {
        self.memory.data(&self.store)
    }

    fn fill(&mut self, byte: u8) {
        self.memory.data_mut(&mut self.store).fill(byte);
    }

    fn function(&mut self, name: &str) -> Func {
        self.instance.get_func(&mut self.store, name).unwrap()
    }

    fn address(&self, address: u64) -> Val {
        if self.index == "i64" { Val::I64(address as i64) } else { Val::I32(address as u32 as i32) }
    }

    fn grow(&mut self, pages: usize) -> i64 {
        let (grow, pages) = (self.function("grow"), self.address(pages as u64));
        let mut result = [Val::I32(0)];
        grow.call(&mut self.store, &[pages], &mut result).unwrap();
        as_i64(result[0])
    }

    fn grow_to_the_end(&mut self) {
        while self.grow(1) != -1 {}
    }

    async fn call_async(&mut self, name: &str, params: &[Val]) -> wasmtime::Result<Option<i64>> {
        let function = self.function(name);
        let mut results = vec![Val::I32(0); function.ty(&self.store).results().len()];
        function.call_async(&mut self.store, params, &mut results).await?;
        Ok(results.first().copied().map(as_i64))
    }

    /// Tries every access at every out-of-bounds address; returns the number of accesses.
    fn try_out_of_bounds(&mut self) -> usize {
        let length = self.bytes().len() as u64;
        let mut beyond = vec![
            length,
            length + 1,
            length + 4096,
            length + PAGE as u64,
            SLOT - 1,
            SLOT,
            SLOT + 1,
            2 * SLOT,
            1 << 31,
            (1 << 32) - SLOT,
            (1 << 32) - 1,
        ];
        if self.index == "i64" {
            beyond.extend([1 << 32, (1 << 32) + SLOT, 1 << 47, u64::MAX - SLOT, 1u64.wrapping_sub(SLOT), u64::MAX]);
        }
        let mut tried = 0;
        for &address in &beyond {
            for name in ACCESSES {
                let (function, param) = (self.function(name), self.address(address));
                let error = function.call(&mut self.store, &[param], &mut []).unwrap_err();
                let trap = error.downcast_ref::<Trap>();
                assert_eq!(trap, Some(&Trap::MemoryOutOfBounds), "{name} at {address:#x} of {length:#x}: {error:?}");
                tried += 1;
            }
        }
        tried
    }
}

fn as_i64(value: Val) -> i64 {
    value.i64().or_else(|| value.i32().map(i64::from)).unwrap()
}

fn is(bytes: &[u8], byte: u8) -> bool {
    bytes == vec![byte; bytes.len()]
}

#[derive(Debug)]
struct Resident {
    mappings: usize,
    kib: usize,
}

/// Mappings and resident memory of an allocator, from `/proc/self/smaps`; the kernel merges adjacent mappings of two
/// allocators into one.
fn resident(allocator: &SlotAllocator) -> Resident {
    let start = allocator.mapping.as_ptr().addr();
    let range = start..start + allocator.mapping_bytes;
    let (mut inside, mut resident) = (false, Resident { mappings: 0, kib: 0 });
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if let Some((start, _)) = word.split_once('-') {
            inside = usize::from_str_radix(start, 16).is_ok_and(|start| range.contains(&start));
            resident.mappings += usize::from(inside);
        } else if inside && word == "Rss:" {
            resident.kib += rest.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
        }
    }
    resident
}

fn bytes_of(memory: &dyn LinearMemory) -> &[u8] {
    // SAFETY: `byte_size` bytes are accessible, and only the owner of the memory writes to them.
    unsafe { std::slice::from_raw_parts(memory.as_ptr(), memory.byte_size()) }
}

fn bytes_of_mut(memory: &mut dyn LinearMemory) -> &mut [u8] {
    // SAFETY: as above, and the memory is borrowed mutably.
    unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), memory.byte_size()) }
}

/// Start of a leaked memory of one page in the first slot.
fn start(memories: &Memories) -> *mut u8 {
    let memory = memories.memory(PAGE, None).unwrap();
    let start = memory.as_ptr();
    std::mem::forget(memory);
    assert_eq!(start, memories.allocator.base.as_ptr());
    start
}

fn last_byte(memories: &Memories) -> *mut u8 {
    start(memories).wrapping_add(PAGE - 1)
}

fn last_byte_after_growth(memories: &Memories) -> *mut u8 {
    let mut memory = memories.memory(PAGE, None).unwrap();
    memory.grow_to(3 * PAGE).unwrap();
    let last = memory.as_ptr().wrapping_add(3 * PAGE - 1);
    std::mem::forget(memory);
    read(last);
    last
}

fn end(allocator: &SlotAllocator) -> *mut u8 {
    allocator.base.as_ptr().wrapping_add(allocator.slots * allocator.slot_bytes)
}

/// Lowest byte of the second stack, which lies after the first one.
fn lowest_byte(stacks: &Stacks) -> *mut u8 {
    let [first, second] = [(); 2].map(|()| stacks.new_stack(STACK, true).unwrap());
    let lowest = second.guard_range().end;
    std::mem::forget((first, second));
    lowest
}

fn read(address: *mut u8) {
    // SAFETY: runs only in a child process, which an invalid access ends with SIGSEGV, as its parent expects.
    std::hint::black_box(unsafe { address.read_volatile() });
}

fn write(address: *mut u8) {
    // SAFETY: as above.
    unsafe { address.write_volatile(1) }
}
