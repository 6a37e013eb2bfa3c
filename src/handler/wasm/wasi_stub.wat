;; Stub of WASI preview 1, for guests with a toolchain that requires it. It has no imports, so that no call leaves the
;; component: language runtimes call WASI also while the host passes an argument (Go's garbage collector reads the clock
;; inside cabi_realloc), when a component must not call an import.
;;
;; Functions without an operating system behind them return an errno: 8 (badf) for descriptors, 52 (nosys) for the rest.
;; That includes random_get: a generator in the stub would give every instance the same bytes, and callers need secrets.
(module
  (import "env" "memory" (memory 0))

  (global $clock (mut i64) (i64.const 0))

  ;; No arguments and no environment: sets both counts to zero.
  (func $none (param $count i32) (param $bytes i32) (result i32)
    (i32.store (local.get $count) (i32.const 0))
    (i32.store (local.get $bytes) (i32.const 0))
    (i32.const 0))
  (export "args_sizes_get" (func $none))
  (export "environ_sizes_get" (func $none))
  (func $nothing (param i32 i32) (result i32) (i32.const 0))
  (export "args_get" (func $nothing))
  (export "environ_get" (func $nothing))

  ;; Both clocks advance by a microsecond at each reading, so that they are monotonic.
  (func (export "clock_time_get") (param $id i32) (param $precision i64) (param $at i32) (result i32)
    (global.set $clock (i64.add (global.get $clock) (i64.const 1000)))
    (i64.store (local.get $at) (global.get $clock))
    (i32.const 0))
  (func (export "clock_res_get") (param $id i32) (param $at i32) (result i32)
    (i64.store (local.get $at) (i64.const 1000))
    (i32.const 0))

  ;; Output is accepted and discarded.
  (func (export "fd_write") (param $fd i32) (param $vectors i32) (param $count i32) (param $at i32) (result i32)
    (local $written i32)
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $count)))
        (local.set $written (i32.add (local.get $written) (i32.load offset=4 (local.get $vectors))))
        (local.set $vectors (i32.add (local.get $vectors) (i32.const 8)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $next)))
    (i32.store (local.get $at) (local.get $written))
    (i32.const 0))
  ;; Standard input, output and error are character devices; no other descriptors exist.
  (func (export "fd_fdstat_get") (param $fd i32) (param $at i32) (result i32)
    (if (i32.gt_u (local.get $fd) (i32.const 2)) (then (return (i32.const 8))))
    (i64.store (local.get $at) (i64.const 2))
    (i64.store offset=8 (local.get $at) (i64.const 0))
    (i64.store offset=16 (local.get $at) (i64.const 0))
    (i32.const 0))

  ;; Every subscription (48 bytes) is ready immediately, as an event (32 bytes) with its user data and type.
  (func (export "poll_oneoff") (param $in i32) (param $out i32) (param $count i32) (param $at i32) (result i32)
    (i32.store (local.get $at) (local.get $count))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $count)))
        (i64.store (local.get $out) (i64.load (local.get $in)))
        (i64.store offset=8 (local.get $out) (i64.shl (i64.load8_u offset=8 (local.get $in)) (i64.const 16)))
        (i64.store offset=16 (local.get $out) (i64.const 0))
        (i64.store offset=24 (local.get $out) (i64.const 0))
        (local.set $in (i32.add (local.get $in) (i32.const 48)))
        (local.set $out (i32.add (local.get $out) (i32.const 32)))
        (local.set $count (i32.sub (local.get $count) (i32.const 1)))
        (br $next)))
    (i32.const 0))

  (func (export "sched_yield") (result i32) (i32.const 0))
  (func (export "proc_exit") (param i32) unreachable)

  (func $badf_i (param i32) (result i32) (i32.const 8))
  (export "fd_close" (func $badf_i))
  (export "fd_datasync" (func $badf_i))
  (export "fd_sync" (func $badf_i))
  (func $badf_ii (param i32 i32) (result i32) (i32.const 8))
  (export "fd_fdstat_set_flags" (func $badf_ii))
  (export "fd_filestat_get" (func $badf_ii))
  (export "fd_prestat_get" (func $badf_ii))
  (export "fd_renumber" (func $badf_ii))
  (export "fd_tell" (func $badf_ii))
  (export "sock_shutdown" (func $badf_ii))
  (func $badf_iii (param i32 i32 i32) (result i32) (i32.const 8))
  (export "fd_prestat_dir_name" (func $badf_iii))
  (export "sock_accept" (func $badf_iii))
  (export "path_create_directory" (func $badf_iii))
  (export "path_remove_directory" (func $badf_iii))
  (export "path_unlink_file" (func $badf_iii))
  (func $badf_iiii (param i32 i32 i32 i32) (result i32) (i32.const 8))
  (export "fd_read" (func $badf_iiii))
  (func $badf_iiiii (param i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (export "path_filestat_get" (func $badf_iiiii))
  (export "path_symlink" (func $badf_iiiii))
  (export "sock_send" (func $badf_iiiii))
  (func $badf_iiiiii (param i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (export "path_readlink" (func $badf_iiiiii))
  (export "path_rename" (func $badf_iiiiii))
  (export "sock_recv" (func $badf_iiiiii))
  (func (export "fd_advise") (param i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "fd_allocate") (param i32 i64 i64) (result i32) (i32.const 8))
  (func (export "fd_fdstat_set_rights") (param i32 i64 i64) (result i32) (i32.const 8))
  (func (export "fd_filestat_set_size") (param i32 i64) (result i32) (i32.const 8))
  (func (export "fd_filestat_set_times") (param i32 i64 i64 i32) (result i32) (i32.const 8))
  (func $badf_iiijk (param i32 i32 i32 i64 i32) (result i32) (i32.const 8))
  (export "fd_pread" (func $badf_iiijk))
  (export "fd_pwrite" (func $badf_iiijk))
  (export "fd_readdir" (func $badf_iiijk))
  (func (export "fd_seek") (param i32 i64 i32 i32) (result i32) (i32.const 8))
  (func (export "path_filestat_set_times") (param i32 i32 i32 i32 i64 i64 i32) (result i32) (i32.const 8))
  (func (export "path_link") (param i32 i32 i32 i32 i32 i32 i32) (result i32) (i32.const 8))
  (func (export "path_open") (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32) (i32.const 8))

  (func (export "proc_raise") (param i32) (result i32) (i32.const 52))
  (func (export "random_get") (param i32 i32) (result i32) (i32.const 52)))
