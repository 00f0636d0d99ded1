#!/usr/bin/env python3
"""Times how fast training reads a store, beside what memory and disk can do in the same run.

    python store.py --out store.jsonl                     everything the notebook beside this file shows: 5 minutes on a machine with nothing else to do, 2.5 GB of disk and of memory
    python store.py --out store.jsonl --gb .2 --rounds 2  smaller

Stores are made of random numbers with random masks and lie in a folder that is removed at the end (--at chooses where). Every line of the output is a JSON object; rates count bytes of the store,
two for each number that is read, in GB/s. All ways take turns within a round; the best round counts, since others share the machine. Reading and copying use one thread each, and reading looks ahead with two more.
"""
import argparse,json,os,platform,shutil,tempfile,threading,time
from pathlib import Path

import torch

from sae_ception.core import config_hash,generator,plain,write_json
from sae_ception.gather import Gather
from sae_ception.run import checksum
from sae_ception.store import Store,_Shard,_close_shard,_piece


def make(path, widths, rows, shards, seed=0):
    "A store of random numbers: one row in a hundred is a BOS token"
    settings = dict(model=dict(name='random'), sites=widths, seed=seed, rows=rows, shards=shards, checksum=dict(algorithm='xxh3_128', piece=_piece))
    written,g,place = [],generator(seed),torch.arange(rows)
    for i in range(shards):
        shard = _Shard(rows, widths, g)
        shard.n,shard.facts = rows,dict(tokens=torch.randint(9, 50000, (rows,), generator=g).int(), doc=place//1000, position=place.int() % 100 - 1, context=place.int()//100, slot=place.int() % 100)
        shard.h = {k: torch.randn(2048, d, generator=g).bfloat16().repeat(-(-rows//2048), 1)[:rows] for k,d in widths.items()}
        record = _close_shard(path/f'train-{i:05d}', shard, {k: d**.5 for k,d in widths.items()}, [], dict(store=config_hash(settings), shard=f'train-{i:05d}'), lambda: None)
        written.append({k: record[k] for k in ('files', 'total', 'counts')})
    norms = {k: dict(median_norm=d**.5, mean_square=float(d)) for k,d in widths.items()}
    meta = plain(dict(settings=settings, id=config_hash(settings), special=[], norms=norms, text={}, shards=dict(train=written, held_out=[]), versions={}))
    write_json(path/'meta.json', dict(meta, hash=config_hash(meta)))
    return Store(path)


def drop(path):
    "Take the files of a store out of memory"
    for o in path.rglob('*.safetensors'):
        fd = os.open(o, os.O_RDONLY)
        os.fsync(fd); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.close(fd)


def mean_time(ways, rounds, seconds):
    "Name -> seconds a call, and processor seconds of the calling thread, each in its best round; all ways take turns, and a round is many calls one after the other"
    took = {k: [float('inf')]*2 for k in ways}
    for r in range(rounds):
        for k in list(ways)[::1 if r % 2 else -1]:
            ways[k]()
            n,start,cpu = 0,time.perf_counter(),time.thread_time()
            while time.perf_counter() - start < seconds: ways[k](); n += 1
            took[k] = [min(took[k][0], (time.perf_counter() - start)/n), min(took[k][1], (time.thread_time() - cpu)/n)]
    return took


def warm(store, sites, batch, rounds, seconds):
    "Reading what is in memory, beside copying it"
    d,rows = next(iter(store.widths.values())),store.rows(sites)
    for _ in range(rows.total//batch + 1): rows.batch(batch) # everything is checked and mapped
    held = {k: [store.open('train', i, k)['h'] for i in range(len(rows.kept))] for k in sites}
    for hs in held.values():
        for h in hs: h.view(torch.int16).sum()
    outs,place = {k: torch.from_numpy(Gather([1], d)._room(batch)) for k in sites},[0]
    def pieces(size):
        for k in sites:
            for j in range(0, batch, size):
                h = held[k][place[0] % len(rows.kept)]
                at = place[0]*7919*size % (len(h) - size + 1)
                place[0] += 1
                yield h[at:at+size],outs[k][j:j+size]
    def blocks():
        for h,out in pieces(256): out.copy_(h)
    def straight():
        for h,out in pieces(batch): out.copy_(h)
    def select(): # what PyTorch does in one operation a step, with blocks as rows
        for k in sites:
            h = held[k][place[0] % len(rows.kept)]
            at = torch.randint(len(h)//256, (batch//256,), generator=g)
            place[0] += 1
            h[:len(h)//256*256].view(-1, 256*d).index_select(0, at).float()
    g = generator(1)
    took = mean_time(dict(store=lambda: rows.batch(batch), blocks=blocks, straight=straight, select=select), rounds, seconds)
    gb = 2*batch*d*len(sites)/1e9
    return dict(table='warm', d=d, sites=len(sites), batch=batch, **{k: gb/v[0] for k,v in took.items()}, share=took['blocks'][0]/took['store'][0], share_cpu=took['blocks'][1]/took['store'][1])


def plain_reading(path, threads):
    "Read all files, one after the other in each thread; bytes a second"
    files,read = sorted(path.rglob('*.safetensors')),[]
    def one(mine):
        buffer = bytearray(2**20)
        for o in mine:
            with open(o, 'rb', 0) as f:
                while k := f.readinto(buffer): read.append(k)
    all_of = [threading.Thread(target=one, args=(files[i::threads],)) for i in range(threads)]
    start = time.perf_counter()
    for o in all_of: o.start()
    for o in all_of: o.join()
    return sum(read)/(time.perf_counter() - start)


def cold(path, batch, rounds):
    "A whole pass over files that are not in memory: by a new reader, which checks them, and by one that did; before, between and after, the files are read plainly"
    size = sum(o.stat().st_size for o in path.rglob('*.safetensors'))
    rates = dict(disk=[], disk2=[], disk4=[], first=[], later=[], checksums=[])
    def plainly():
        for k,threads in ('disk', 1), ('disk2', 2), ('disk4', 4): drop(path); rates[k].append(plain_reading(path, threads))
    def a_pass(what, store=None):
        drop(path)
        start = time.perf_counter()
        rows = (store or Store(path)).rows()
        for n in [batch]*(rows.total//batch) + [rows.total % batch]: rows.batch(n)
        rates[what].append(size/(time.perf_counter() - start))
        rows.readers.shutdown()
        return rows.store
    for _ in range(rounds):
        plainly()
        store = a_pass('first')
        plainly()
        a_pass('later', store)
        start = time.perf_counter()
        for o in path.rglob('*.safetensors'): checksum(o)
        rates['checksums'].append(size/(time.perf_counter() - start))
    found = {k: max(v)/1e9 for k,v in rates.items()}
    most = max(found[k] for k in ('disk', 'disk2', 'disk4'))
    return dict(table='cold', batch=batch, gb=size/1e9, **found, share_first=found['first']/most, share_later=found['later']/most)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', required=True); p.add_argument('--at'); p.add_argument('--gb', type=float, default=.5)
    p.add_argument('--rounds', type=int, default=20); p.add_argument('--seconds', type=float, default=.1); p.add_argument('--tables', default='warm,cold')
    a = p.parse_args()
    if a.gb < .2: p.error('--gb must be .2 or more: a shard must hold the largest batch')
    torch.set_num_threads(1) # one thread reads, and one thread copies
    work,tables = Path(tempfile.mkdtemp(dir=a.at)),a.tables.split(',')
    try:
        with open(a.out, 'w') as f:
            def say(**o): f.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k,v in o.items()}) + '\n'); f.flush(); print(o, flush=True)
            say(table='machine', processor=platform.processor() or platform.machine(), cores=os.cpu_count(), threads=torch.get_num_threads(), torch=torch.__version__, gb=a.gb)
            for d in (768, 2304):
                rows = int(a.gb*1e9/(2*d)/8)
                store = make(work/str(d), {f's{i}': d for i in range(4)}, rows, 8)
                for sites in (1, 2, 4) if 'warm' in tables else ():
                    for batch in (1024, 4096): say(**warm(store, list(store.widths)[:sites], batch, a.rounds, a.seconds))
                if d == 2304 and 'cold' in tables: say(d=d, sites=4, shards=8, **cold(work/str(d), 4096, max(2, a.rounds//4)))
                shutil.rmtree(work/str(d))
            if 'cold' in tables:
                make(work/'many', {'s0': 768}, int(2*a.gb*1e9/(2*768)/24), 24)
                say(d=768, sites=1, shards=24, **cold(work/'many', 4096, max(2, a.rounds//4)))
    finally: shutil.rmtree(work)

if __name__ == '__main__': main()
