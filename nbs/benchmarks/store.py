#!/usr/bin/env python3
"""Times how fast training reads a store, beside what memory and disk can do in the same run.

    python store.py --out store.jsonl                           everything the notebook beside this file shows: 15 minutes on a machine with nothing else to do, 23 GB of disk and 8 of memory
    python store.py --out store.jsonl --rows 16384 --rounds 4   smaller

Stores are made of random numbers with random masks and lie in a folder that is removed at the end (--at chooses where). Every line of the output is a JSON object; rates count bytes of the store,
two for each number that is read, in GB/s. All ways take turns within a round. From memory the best round counts, since others share the machine; from the disk, which is uneven, the median of the rounds.
Copying uses one thread, and so does training, for which six more look ahead.
"""
import argparse,gc,itertools,json,os,platform,shutil,statistics,tempfile,threading,time
from contextlib import contextmanager
from pathlib import Path

import torch

from sae_ception.core import config_hash,generator,plain,write_json
from sae_ception.gather import Gather
from sae_ception.store import Store,_Shard,_ahead,_close_shard,_piece


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


def drop(files):
    "Take files out of memory, but for what is mapped"
    for o in files:
        fd = os.open(o, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.close(fd)


def from_disks(): return int(next(o for o in Path('/proc/self/io').read_text().splitlines() if o.startswith('read_bytes')).split()[1]) # bytes that disks gave this process


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


def plainly(todo, threads, seconds, keep=0):
    "Read the next files one after the other in each thread, and drop each when `keep` more were read; bytes a second that came from the disk, once so many are held"
    held = []
    def read(until):
        def one():
            buffer = bytearray(2**20)
            while not until():
                held.append(file := next(todo))
                with open(file, 'rb', 0) as f:
                    while f.readinto(buffer): pass
                while len(held) > keep: drop([held.pop(0)])
        all_of = [threading.Thread(target=one) for _ in range(threads)]
        for o in all_of: o.start()
        for o in all_of: o.join()
    read(lambda: len(held) >= keep)
    had,start = from_disks(),time.perf_counter()
    read(lambda: time.perf_counter() > start + seconds)
    rate = (from_disks() - had)/(time.perf_counter() - start)
    drop(held)
    return rate


class Training:
    "Reads a store as training does, and drops each shard as soon as it is no longer mapped"
    def __init__(self, path, batch):
        start = time.perf_counter()
        self.rows,self.batch,self.gone = Store(path).rows(),batch,set()
        self.rows.batch(batch)
        self.opened = time.perf_counter() - start

    def read(self, rows):
        "Read so many rows; bytes of them a second, and bytes a second that came from the disk"
        r,n,start,had = self.rows,rows//self.batch,time.perf_counter(),from_disks()
        for _ in range(n):
            before = r.here
            r.batch(self.batch)
            self.gone = (self.gone | before.keys()) - r.here.keys()
            for i in [i for i in self.gone if all((i, k) not in r.mapped for k in r.widths)]:
                drop(r.store.path/o['name'] for o in r.store.meta['shards']['train'][i]['files'].values())
                self.gone.remove(i)
        took = time.perf_counter() - start
        return n*self.batch*2*sum(r.widths.values())/took,(from_disks() - had)/took


def cold(path, batch, rounds, seconds):
    "Reading as from a disk much larger than memory, beside plain reading"
    files = sorted(path.rglob('*.safetensors'))
    todo = itertools.cycle(files) # or the same few would be read again and again, and lie in the memory of the machine that this one runs on
    probe = Store(path).rows()
    keep = (probe.shards + _ahead)*(len(probe.widths) + 1) # as many files as training has in use; rows.safetensors is one of a shard's
    plain = {'disk': (1, 0), 'disk2': (2, 0), 'disk4': (4, 0), 'kept2': (2, keep), 'kept4': (4, keep)}
    rates,shares = {k: [] for k in (*plain, 'store', 'from_disk', 'opened')},{k: [] for k in ('share', 'share_kept')}
    for _ in range(rounds):
        drop(files)
        for k,(threads,held) in plain.items(): rates[k].append(plainly(todo, threads, seconds, held))
        training = Training(path, batch)
        total = training.rows.total
        training.read(total//2) # until the memory that it takes has been taken
        for k,v in zip(('store', 'from_disk'), training.read(total)): rates[k].append(v) # a whole pass, from the middle of one to the middle of the next
        rates['opened'].append(training.opened)
        training.rows.readers.shutdown()
        del training # with all that it has mapped
        gc.collect()
    for k,ways in dict(share=('disk', 'disk2', 'disk4'), share_kept=('kept2', 'kept4')).items():
        best = max(ways, key=lambda k: statistics.median(rates[k]))
        shares[k] = sorted(min(a, b)/o for a,b,o in zip(rates['store'], rates['from_disk'], rates[best]))
    found = {k: statistics.median(v)/(1 if k == 'opened' else 1e9) for k,v in rates.items()}
    return dict(table='cold', batch=batch, gb=sum(o.stat().st_size for o in files)/1e9, rounds=rounds, kept=keep, **found, **{k: statistics.median(v) for k,v in shares.items()}, shares=[round(o, 3) for o in shares['share']], shares_kept=[round(o, 3) for o in shares['share_kept']])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--out', required=True); p.add_argument('--at'); p.add_argument('--rows', type=int, default=65_536, help='of a shard; 65,536 is what write_store writes')
    p.add_argument('--rounds', type=int, default=16); p.add_argument('--seconds', type=float, default=.1); p.add_argument('--tables', default='warm,cold')
    a = p.parse_args()
    if a.rows < 16_384: p.error('--rows must be 16384 or more: a shard must hold the largest batch')
    torch.set_num_threads(1) # one thread reads, and one thread copies
    work,tables = Path(tempfile.mkdtemp(dir=a.at)),a.tables.split(',')
    @contextmanager
    def store(d, sites, shards):
        try: yield make(work/'store', {f's{i}': d for i in range(sites)}, a.rows, shards)
        finally: shutil.rmtree(work/'store')
    try:
        with open(a.out, 'w') as f:
            def say(**o): f.write(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k,v in o.items()}) + '\n'); f.flush(); print(o, flush=True)
            say(table='machine', processor=platform.processor() or platform.machine(), cores=os.cpu_count(), threads=torch.get_num_threads(), torch=torch.__version__, rows=a.rows)
            for d in (768, 2304) if 'warm' in tables else ():
                with store(d, 4, 8) as s:
                    for sites in 1, 2, 4:
                        for batch in 1024, 4096: say(**warm(s, list(s.widths)[:sites], batch, a.rounds, a.seconds))
            for d,sites,shards in ((768, 1, 128), (2304, 1, 64), (768, 4, 56)) if 'cold' in tables else ():
                with store(d, sites, shards) as s:
                    os.sync() # what is not yet written cannot be dropped
                    say(d=d, sites=sites, shards=shards, **cold(s.path, 4096, max(2, a.rounds//2), 20*a.seconds))
    finally: shutil.rmtree(work)

if __name__ == '__main__': main()
