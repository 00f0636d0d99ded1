#!/usr/bin/env python3
"""Times whole training steps of sparse autoencoder libraries side by side, on the same activations, and the limits of the machine in the same run.

    python steps.py setup  ENVS                     one virtual environment a library, under the folder ENVS
    python steps.py run    ENVS steps.jsonl         everything the notebook beside this file shows; a few minutes a table
    python steps.py run    ENVS out.jsonl --tables peers --cases topk:12288:1024 --rounds 5

Every library lives in a process of its own and works only when it is asked to; within a case the libraries take turns, in an order that changes from
round to round. A step is what the library's own loop does with one batch by default (loss, backward, clipping, decoder norm, optimizer, its numbers for the
log) on activations that are already in memory. Results are JSON lines. Add a library: a class in LIBRARIES with its requirement in ENVIRONMENTS.
"""
import argparse,contextlib,gc,io,json,logging,os,platform,random,statistics,subprocess,sys,time
from pathlib import Path

D,K,L1,LEVELS = 768,32,1.,(1/16, 1/8, 1/4, 1/2, 1.)
ENVIRONMENTS = dict(saelens='sae-lens==6.54.12', dictionary_learning='dictionary-learning==0.1.0', sparsify='eai-sparsify==1.3.3', overcomplete='overcomplete==0.3.0')
CASES = ['topk:12288:1024', 'batchtopk:12288:1024', 'matryoshka:12288:1024', 'relu:12288:1024',
         'topk:12288:4096', 'batchtopk:12288:4096', 'matryoshka:12288:4096', 'relu:12288:4096', 'topk:3072:1024', 'matryoshka:3072:1024']
TUNED = dict(MALLOC_MMAP_MAX_='0', MALLOC_TRIM_THRESHOLD_='17179869184')


def activations(n=32768, d=D, features=8192, active=24, seed=0):
    "Sparse directions with Zipf frequencies and heavy-tailed sizes, a mean, a low-rank background and white noise; mean length the root of d"
    import torch
    g = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(features, d, generator=g), dim=1)
    p = (torch.arange(features) + 10.)**-.8
    size,mean,U = .5 + torch.rand(features, generator=g),2*torch.randn(d, generator=g)/d**.5,torch.randn(d, 32, generator=g)/d**.5
    rows = []
    for _ in range(0, n, 4096):
        on = torch.multinomial(p.expand(4096, -1), active, replacement=True, generator=g)
        a = size[on]*torch.exp(.4*torch.randn(4096, active, generator=g))
        x = torch.nn.functional.embedding_bag(on, W, per_sample_weights=a, mode='sum') + mean
        rows.append(x + .5*torch.randn(4096, 32, generator=g) @ U.T + .3*torch.randn(4096, d, generator=g)/d**.5)
    x = torch.cat(rows)[:n]
    return x*d**.5/x.norm(dim=1).mean()


# ---------------------------------------------------------------- the libraries

class Ours:
    env,kinds,precision = None,('topk', 'batchtopk', 'matryoshka', 'relu'),'auto'

    def setup(self, kind, width, batch):
        import torch
        from sae_ception.sae.kernels import SparseStep
        W = torch.nn.functional.normalize(torch.randn(width, D, generator=torch.Generator().manual_seed(0)), dim=1)
        p = dict(W_enc=W.clone(), b_enc=torch.zeros(width), W_dec=W.clone(), b_dec=torch.zeros(D))
        self.p = {n: torch.nn.Parameter(o) for n,o in p.items()}
        self.opt = torch.optim.Adam(self.p.values(), lr=3e-4)
        activation = dict(matryoshka='batchtopk').get(kind, kind)
        self.s = SparseStep(activation, K, tuple(int(width*o) for o in LEVELS) if kind == 'matryoshka' else (), precision=self.precision)
        self.silent = torch.zeros(width)

    def step(self, x):
        dead = self.silent > 10_000_000
        r = self.s(self.p, x, x, float(D), l1=L1/D if self.s.activation == 'relu' else 0., dead=dead if dead.any() else None, auxk=1/32)
        self.s.update(self.opt)
        self.silent.add_(len(x)).masked_fill_(r.fired, 0)
        return float(r.loss)

class OursFloat32(Ours): precision = 'float32'


class SAELens:
    env,kinds,amp = 'saelens',('topk', 'batchtopk', 'matryoshka', 'relu'),False

    def setup(self, kind, width, batch):
        import sae_lens as sl,torch
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer
        torch.manual_seed(0)
        base = dict(d_in=D, d_sae=width, device='cpu', dtype='float32')
        if kind == 'topk': sae = sl.TopKTrainingSAE(sl.TopKTrainingSAEConfig(k=K, **base))
        elif kind == 'batchtopk': sae = sl.BatchTopKTrainingSAE(sl.BatchTopKTrainingSAEConfig(k=K, **base))
        elif kind == 'relu': sae = sl.StandardTrainingSAE(sl.StandardTrainingSAEConfig(l1_coefficient=L1, **base))
        else:
            from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE as M,MatryoshkaBatchTopKTrainingSAEConfig as C
            sae = M(C(k=K, matryoshka_widths=[int(width*o) for o in LEVELS], **base))
        self.t = SAETrainer(SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=batch, lr_end=3e-5, device='cpu', autocast=self.amp),
                            sae, data_provider=iter(()))

    def step(self, x):
        self.t.maybe_reset_sparsity()
        out = self.t.step(x)
        self.t.n_training_steps += 1
        return out.loss.item()

class SAELensAutocast(SAELens): amp = True


class DictionaryLearning:
    env,kinds = 'dictionary_learning',('topk', 'batchtopk', 'matryoshka', 'relu')

    def setup(self, kind, width, batch):
        import importlib
        module,name,more = dict(topk=('top_k', 'TopKTrainer', dict(k=K)), batchtopk=('batch_top_k', 'BatchTopKTrainer', dict(k=K)),
                                relu=('standard', 'StandardTrainer', dict(l1_penalty=L1)),
                                matryoshka=('matryoshka_batch_top_k', 'MatryoshkaBatchTopKTrainer', dict(k=K, group_fractions=[b - a for a,b in zip((0, *LEVELS), LEVELS)])))[kind]
        make = getattr(importlib.import_module(f'dictionary_learning.trainers.{module}'), name)
        self.t = make(steps=10**6, activation_dim=D, dict_size=width, layer=8, lm_name='x', device='cpu', seed=0, **more)
        self.n = 1001 # past the start of its threshold: the steady state

    def step(self, x):
        self.n += 1
        loss = self.t.update(self.n, x)
        return float('nan') if loss is None else float(loss) # its trainer for relu keeps the loss to itself


class Sparsify: # the loop of sparsify's trainer around one coder
    env,kinds,adam = 'sparsify',('topk',),False

    def setup(self, kind, width, batch):
        import torch
        from sparsify.config import SparseCoderConfig
        from sparsify.sparse_coder import SparseCoder
        torch.manual_seed(0)
        torch.set_float32_matmul_precision('high')
        self.sae = SparseCoder(D, SparseCoderConfig(num_latents=width, k=K), dtype=torch.float32)
        if self.adam: self.opt = torch.optim.Adam(self.sae.parameters(), lr=2e-4/(width/2**14)**.5)
        else:
            from schedulefree import ScheduleFreeWrapper
            from sparsify.sign_sgd import SignSGD
            self.opt = ScheduleFreeWrapper(SignSGD(self.sae.parameters(), lr=5e-3/(width/2**14)**.5), momentum=.95)
            self.opt.train()
        self.silent,self.fired = torch.zeros(width, dtype=torch.long),torch.zeros(width, dtype=torch.bool)

    def step(self, x):
        self.sae.set_decoder_norm_to_unit_norm()
        out = self.sae(x=x, y=x, dead_mask=None, total_variance=(x - x.mean(0)).pow(2).sum())
        self.fired[out.latent_indices.flatten()] = True
        loss = float(out.fvu.detach())
        (out.fvu + out.multi_topk_fvu/8).backward()
        self.sae.remove_gradient_parallel_to_decoder_directions()
        self.opt.step(); self.opt.zero_grad()
        self.silent += len(x); self.silent[self.fired] = 0; self.fired.zero_()
        return loss

class SparsifyAdam(Sparsify): adam = True


class Overcomplete:
    env,kinds = 'overcomplete',('topk', 'batchtopk', 'relu')

    def setup(self, kind, width, batch):
        import matplotlib,matplotlib.cm,torch
        from unittest.mock import MagicMock
        for o in ('torchvision', 'torchvision.transforms', 'torchvision.datasets', 'timm', 'timm.data'): sys.modules.setdefault(o, MagicMock()) # imported by its loaders, not needed here
        if not hasattr(matplotlib.cm, 'get_cmap'): matplotlib.cm.get_cmap = lambda n: matplotlib.colormaps[n] if isinstance(n, str) else n # it wants an older matplotlib
        from overcomplete.sae import SAE,BatchTopKSAE,TopKSAE,losses
        from overcomplete.sae.train import train_sae
        torch.manual_seed(0)
        self.train = train_sae
        self.m = TopKSAE(D, width, top_k=K) if kind == 'topk' else BatchTopKSAE(D, width, top_k=K*batch) if kind == 'batchtopk' else SAE(D, width)
        self.loss = losses.mse_l1 if kind == 'relu' else lambda x, x_hat, pre, z, d: (x - x_hat).square().mean()
        self.opt = torch.optim.Adam(self.m.parameters(), lr=5e-4)

    def run(self, batches):
        times = []
        def loader():
            for x in batches: times.append(time.perf_counter()); yield x
        with contextlib.redirect_stdout(io.StringIO()): logs = self.train(self.m, loader(), self.loss, self.opt, nb_epochs=1, device='cpu')
        times.append(time.perf_counter())
        return [b - a for a,b in zip(times, times[1:])],logs['step_loss'][-1]


LIBRARIES = {'sae_ception': Ours, 'sae_ception float32': OursFloat32, 'SAELens': SAELens, 'SAELens autocast': SAELensAutocast,
             'dictionary_learning': DictionaryLearning, 'sparsify': Sparsify, 'sparsify Adam': SparsifyAdam, 'overcomplete': Overcomplete}


# ---------------------------------------------------------------- one process a library

def memory(reset=False):
    "Peak resident memory in GiB since the last reset"
    if reset: Path('/proc/self/clear_refs').write_text('5')
    return next(int(o.split()[1]) for o in Path('/proc/self/status').read_text().splitlines() if o.startswith('VmHWM'))/2**20

def busy():
    "Seconds of work of all processes on all cores since boot"
    user,nice,system,_,_,irq,soft,steal,*_ = map(int, Path('/proc/stat').read_text().split('\n')[0].split()[1:])
    return (user + nice + system + irq + soft + steal)/os.sysconf('SC_CLK_TCK')

def wait_quiet(seconds):
    "Wait until others use less than a third of a core, so long at most"
    end = time.time() + seconds
    while time.time() < end:
        b = busy(); time.sleep(.25)
        if (busy() - b)/.25 < .33: return

def best(f, n=5):
    "Shortest time in seconds, after one call that does not count"
    times = []
    for _ in range(n + 1):
        t = time.perf_counter(); f(); times.append(time.perf_counter() - t)
    return min(times[1:])

def roofline(width, batch):
    "What this machine can do at the shapes of one step, in ms; a lower bound of the step made of them"
    import torch
    x,W = torch.randn(batch, D),torch.randn(width, D)
    low,out = (x.bfloat16(), W.bfloat16()),torch.empty(batch, width, dtype=torch.bfloat16)
    eight,sums = [(30*o).clamp(-127, 127).to(torch.int8) for o in (x, W)],torch.empty(batch, width, dtype=torch.int32)
    a,b = torch.randn(2, 2**25)
    r = dict(float32=best(lambda: x @ W.T, 3), bfloat16=best(lambda: torch.mm(low[0], low[1].T, out=out), 3), int8=best(lambda: torch._int_mm(eight[0], eight[1].T, out=sums), 3))
    bandwidth = 8*len(a)/best(lambda: b.copy_(a)) # bytes a second, read and written
    gflop,encode,shared = 2*batch*D*width/1e9,min(r['float32'], r['bfloat16']),2*4*batch*K*D + 2*4*width*D + 28*2*D*width # rows gathered, gradients written, Adam's pass
    codes = 2*(2 if encode == r['bfloat16'] else 4)*batch*width # written and read
    return dict(float32_gflops=gflop/r['float32'], bfloat16_gflops=gflop/r['bfloat16'], int8_gops=gflop/r['int8'], bandwidth=bandwidth/1e9, encode_ms=1e3*encode, encode8_ms=1e3*r['int8'],
                minimal_ms=1e3*(encode + (codes + shared)/bandwidth), minimal8_ms=1e3*(r['int8'] + (2*4*batch*width + shared)/bandwidth))

def worker(name, threads):
    "Answers JSON commands, one a line"
    out = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1)
    logging.disable(logging.WARNING)
    import torch
    torch.set_num_threads(threads)
    acts,g,lib = activations(),torch.Generator().manual_seed(0),None
    for line in sys.stdin:
        c = json.loads(line)
        try:
            if c['do'] == 'setup':
                lib = None; gc.collect(); memory(reset=True)
                lib = LIBRARIES[name]()
                if c['kind'] in lib.kinds: lib.setup(c['kind'], c['width'], c['batch'])
                r = dict(there=c['kind'] in lib.kinds)
            elif c['do'] == 'roofline': r = roofline(c['width'], c['batch'])
            elif c['do'] == 'free': lib = None; gc.collect(); r = {}
            else:
                rows = [acts[torch.randint(len(acts), (c['batch'],), generator=g)] for _ in range(c['steps'])]
                cpu,others,times,loss = time.process_time(),busy(),[],None
                if hasattr(lib, 'run'): times,loss = lib.run(rows)
                else:
                    for x in rows: t = time.perf_counter(); loss = lib.step(x); times.append(time.perf_counter() - t)
                cpu = time.process_time() - cpu
                r = dict(times=times, cpu=cpu/len(times), others=max(0., busy() - others - cpu)/sum(times), loss=float(loss), memory=memory())
        except Exception as e: r = dict(error=f'{type(e).__name__}: {e}'[:300])
        out.write(json.dumps(r) + '\n'); out.flush()


# ---------------------------------------------------------------- the driver

class Process:
    def __init__(self, name, envs, threads, more):
        env = LIBRARIES[name].env if name in LIBRARIES else None
        python = sys.executable if env is None else f'{envs}/{env}/bin/python'
        keep = dict(os.environ, OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE='1', WANDB_MODE='disabled', PYTHONWARNINGS='ignore', **more)
        self.p = subprocess.Popen([python, __file__, 'worker', name, '--threads', str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, text=True, env=keep)

    def ask(self, **command):
        self.p.stdin.write(json.dumps(command) + '\n'); self.p.stdin.flush()
        line = self.p.stdout.readline()
        return json.loads(line) if line else dict(error='the process died')

    def close(self): self.p.stdin.close(); self.p.wait()

def peers(write, envs, cases, libraries, rounds, threads, seconds, wait, allocator):
    "The table of whole steps; rounds in which other processes used more than a third of a core are left out if there are better ones"
    more = TUNED if allocator == 'tuned' else {}
    ps,limits = {n: Process(n, envs, threads, more) for n in libraries},Process('limits', envs, threads, more)
    for case in cases:
        kind,width,batch = case.split(':')
        shape = dict(kind=kind, width=int(width), batch=int(batch))
        there,runs = [],{}
        for n,p in ps.items():
            r = p.ask(do='setup', **shape)
            if r.get('there'): r = p.ask(do='steps', steps=3, **shape)
            if 'error' in r: write(table='peers', allocator=allocator, case=case, library=n, error=r['error'])
            elif 'times' in r: there.append(n); runs[n] = []; p.steps = max(2, min(20, round(seconds/min(r['times']))))
        for i in range(rounds):
            wait_quiet(wait)
            write(table='roofline', allocator=allocator, case=case, **shape, **limits.ask(do='roofline', **shape))
            for n in random.Random(i).sample(there, len(there)):
                wait_quiet(wait)
                runs[n].append(ps[n].ask(do='steps', steps=ps[n].steps, **shape))
        for n in there:
            runs[n] = [r for r in runs[n] if r['others'] < .33] or runs[n]
            ms = sorted(1e3*t for r in runs[n] for t in r['times'])
            write(table='peers', allocator=allocator, case=case, library=n, **shape, ms=statistics.median(ms), ms_min=ms[0], cpu_ms=1e3*min(r['cpu'] for r in runs[n]),
                  steps=len(ms), others=max(r['others'] for r in runs[n]), memory_gib=max(r['memory'] for r in runs[n]), loss=runs[n][-1]['loss'])
        for p in ps.values(): p.ask(do='free')
    for p in (limits, *ps.values()): p.close()


# ---------------------------------------------------------------- our own costs

def scaling(write, threads):
    "One shape at a time differs from the middle one; a dense autograd step beside ours"
    import torch
    torch.set_num_threads(threads)
    for name,values in dict(d=(128, 256, 512, 768, 1536), width=(1024, 3072, 6144, 12288, 24576), k=(8, 16, 32, 64, 128, 256), batch=(128, 512, 1024, 2048, 4096)).items():
        for v in values:
            c = dict(d=768, width=6144, k=32, batch=1024) | {name: v}
            for which in ('sparse', 'dense'): write(table='scaling', varied=name, which=which, **c, ms=1e3*_one(which, **c))

def _one(which, d, width, k, batch):
    import torch
    from sae_ception.sae.kernels import SparseStep,dense_codes
    g = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(width, d, generator=g), dim=1)
    p = {n: torch.nn.Parameter(o) for n,o in dict(W_enc=W.clone(), b_enc=torch.zeros(width), W_dec=W.clone(), b_dec=torch.zeros(d)).items()}
    x,opt,s = torch.randn(batch, d, generator=g),torch.optim.Adam(p.values(), lr=1e-4, fused=True),SparseStep('topk', k)
    def sparse(): s(p, x, x, float(d)); s.update(opt)
    def dense():
        z = dense_codes((x - p['b_dec']) @ p['W_enc'].T + p['b_enc'], 'topk', k)
        opt.zero_grad()
        ((z @ p['W_dec'] + p['b_dec'] - x).square().sum(-1).mean()/d).backward()
        with torch.no_grad():
            D_,gD = p['W_dec'],p['W_dec'].grad
            gD -= (gD*D_).sum(-1, keepdim=True)*D_
            opt.step()
            D_.copy_(torch.nn.functional.normalize(D_, dim=-1))
    return best(dict(sparse=sparse, dense=dense)[which], 4)

def parts(write, threads):
    "Where the time of one of our steps goes"
    import torch
    from sae_ception.sae import kernels
    torch.set_num_threads(threads)
    acts = activations(8192)
    for kind in ('topk', 'batchtopk', 'matryoshka'):
        for batch in (1024, 4096):
            lib,spent = Ours(),{}
            lib.setup(kind, 12288, batch)
            lib.step(acts[:batch])
            for o,names in ((lib.s, ('_encode', 'update')), (lib.s.engine, ('select', 'residuals'))):
                for n in names: setattr(o, n, _timed(getattr(o, n), n.strip('_'), spent))
            whole = _timed(lib.step, 'whole', spent)
            for i in range(8): whole(acts[torch.randint(len(acts), (batch,))])
            low = {n: 1e3*min(o) for n,o in spent.items()}
            write(table='parts', kind=kind, batch=batch, width=12288, **low, rest=low['whole'] - sum(v for n,v in low.items() if n != 'whole'))

def _timed(f, name, spent):
    def timed(*args, **kwargs):
        t = time.perf_counter()
        r = f(*args, **kwargs)
        spent.setdefault(name, []).append(time.perf_counter() - t)
        return r
    return timed

def machine(write, threads):
    import torch
    cpu = next((o.split(':')[1].strip() for o in Path('/proc/cpuinfo').read_text().splitlines() if o.startswith('model name')), platform.processor())
    write(table='machine', cpu=cpu, cores=os.cpu_count(), threads=threads, capability=torch.backends.cpu.get_cpu_capability(), torch=torch.__version__, python=platform.python_version(),
          date=time.strftime('%Y-%m-%d'), packages=ENVIRONMENTS)


# ---------------------------------------------------------------- commands

def setup(envs):
    for name,what in ENVIRONMENTS.items():
        where = Path(envs)/name
        subprocess.check_call([sys.executable, '-m', 'venv', where])
        pip = [where/'bin/python', '-m', 'pip', 'install', '-q']
        subprocess.check_call([*pip, 'torch==2.13.0'])
        subprocess.check_call([*pip, what])
        subprocess.check_call([*pip, '--no-deps', 'torch==2.13.0']) # some of them pull another torch, and a torchvision that fits it only
        subprocess.check_call([where/'bin/python', '-m', 'pip', 'uninstall', '-q', '-y', 'torchvision'])

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('command', choices=['setup', 'run', 'worker'])
    a.add_argument('where', help='folder of the environments (worker: a library)')
    a.add_argument('out', nargs='?', help='file of JSON lines to append to')
    a.add_argument('--tables', default='machine,peers,tuned,scaling,parts')
    a.add_argument('--cases', default=','.join(CASES), help='kind:width:batch, comma-separated')
    a.add_argument('--libraries', default=','.join(LIBRARIES))
    a.add_argument('--rounds', type=int, default=3)
    a.add_argument('--threads', type=int, default=min(2, os.cpu_count()))
    a.add_argument('--wait', type=float, default=20., help='at most so many seconds for a quiet machine before each run')
    a.add_argument('--seconds', type=float, default=1.5, help='of work for a library in a round')
    a = a.parse_args()
    if a.command == 'setup': return setup(a.where)
    if a.command == 'worker': return worker(a.where, a.threads)
    os.environ['OMP_NUM_THREADS'] = str(a.threads)
    def write(**row):
        line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k,v in row.items()})
        print(line, flush=True)
        if a.out:
            with open(a.out, 'a') as f: f.write(line + '\n')
    cases,libraries = a.cases.split(','),a.libraries.split(',')
    for table in a.tables.split(','):
        if table == 'machine': machine(write, a.threads)
        if table == 'peers': peers(write, a.where, cases, libraries, a.rounds, a.threads, a.seconds, a.wait, 'as shipped')
        if table == 'tuned': peers(write, a.where, [o for o in cases if o.endswith('12288:1024') and 'relu' not in o], libraries, a.rounds, a.threads, a.seconds, a.wait, 'tuned')
        if table == 'scaling': scaling(write, a.threads)
        if table == 'parts': parts(write, a.threads)

if __name__ == '__main__': main()
