#!/usr/bin/env python3
"""Does to runs what goes wrong on real machines, and counts what came of it. Every line is one fault, as JSON.

    python faults.py kills  faults.jsonl                SIGKILL at 60 random moments: of all processes, of the kernel, of the launcher
    python faults.py stops  faults.jsonl                SIGTERM and SIGINT, ten times each
    python faults.py disks  faults.jsonl                a full disk, a directory that may not be written to, damaged checkpoints
    python faults.py others faults.jsonl                a clock that jumps, two runs in one directory, a hub that is down
    python faults.py memory faults.jsonl                memory over 20,000 steps, and over 30 cycles
    python faults.py all    faults.jsonl                all of these (about an hour of one core) and the fuzz of fuzz.py

Every run is started as a person starts it, `python -m sae_ception ...`, is disturbed, and is started again by the same command until it is done. Then its
directory must equal that of a run that nothing disturbed: the same files, byte for byte.
"""
import argparse,ctypes,hashlib,json,os,random,re,shutil,signal,subprocess,sys,tempfile,time
from pathlib import Path

import psutil

CASES = dict(
    cycle='cycle cycles=1 epochs=6 tune_epochs=3 sae_epochs=10 width=64 sae_k=6',
    study='study seeds=0,1 arms=control,per_class cycles=1 epochs=6 tune_epochs=3 sae_epochs=10 width=64',
    lm_sae='lm_sae model_name=gpt2:32x1 layer=0 vocab_size=300 pretrain_tokens=20000 training_tokens=16384 eval_tokens=4096 buffer_tokens=4096 n_evals=4 context_size=32',
    lm_store='lm_sae model_name=gpt2:32x1 layer=0 vocab_size=300 pretrain_tokens=20000 training_tokens=16384 eval_tokens=4096 store=true n_evals=4 context_size=32',
    pretrain='pretrain model_name=gpt2:32x1 vocab_size=300 pretrain_tokens=20000 training_tokens=8192 sae_tokens=8192 eval_tokens=4096 seeds=0 arms=control,per_token '
             'width=64 sae_k=8 context_size=32 k=2',
    sae='sae epochs=20 sae_epochs=30 width=64',
    baseline='baseline epochs=40')
SAVE_EVERY = .2 # seconds between checkpoints, where 20 would be none at all in runs this short
LEFT_OUT = '`log.jsonl` (a time in every line) and the executed notebook (times, and what each attempt printed)'

# Loaded by every Python process of a run. It changes nothing; it tells where a process was when its end came (SIGUSR2, just before SIGKILL), and can end it at a chosen file operation.
WATCH = '''
import faulthandler,os,signal,sys
folder = os.environ.get('FAULTS_FOLDER')
if folder and 'ipykernel_launcher' in ' '.join(sys.orig_argv):
    stack = open(os.path.join(folder, 'stack'), 'w')
    faulthandler.register(signal.SIGUSR2, file=stack, all_threads=True)
    out,target,seen = os.environ['FAULTS_OUT'],int(os.environ.get('FAULTS_AT', 0)),0
    def end():
        global seen
        seen = -10**9
        faulthandler.dump_traceback(file=stack, all_threads=True); stack.flush()
        for pid in (os.getppid(), os.getpid()) if os.environ['FAULTS_WHOM'] == 'job' else (os.getpid(),): os.kill(pid, signal.SIGKILL)
    def hook(event, args):
        global seen
        if seen == target > 0: end() # just after
        write = event == 'os.rename' and str(args[1]).startswith(out) or event == 'open' and str(args[0]).startswith(out) and isinstance(args[1], str) and 'w' in args[1]
        if not write: return
        seen += 1
        if not target: os.write(count, b'.')
        elif seen == target and os.environ['FAULTS_WHEN'] == 'before': end()
    if target or 'FAULTS_COUNT' in os.environ:
        count = os.open(os.path.join(folder, 'count'), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(hook)
'''

class Job:
    "A run that was started as a person starts it"
    def __init__(self, words, out, more=None, command=(), **env):
        self.out,self.folder = Path(out).resolve(),Path(tempfile.mkdtemp(prefix='faults_'))
        (self.folder/'sitecustomize.py').write_text(WATCH)
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get('PYTHONPATH')])])
        full = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'SAE_CEPTION_SAVE_EVERY': str(SAVE_EVERY), 'FAULTS_FOLDER': str(self.folder),
                'FAULTS_OUT': str(self.out), 'FAULTS_WHOM': 'job', **{k: str(v) for k,v in env.items()}}
        self.log = open(self.folder/'said', 'w+')
        self.p = subprocess.Popen([*command, sys.executable, '-m', 'sae_ception', *words.split(), '--out', str(out), *(more or [])], stdout=self.log, stderr=subprocess.STDOUT,
                                  stdin=subprocess.DEVNULL, env={k: v for k,v in full.items() if v != 'None'}, start_new_session=True)
        self.begin = time.monotonic()

    def family(self):
        "All processes of the run, and the kernel among them"
        try: o = psutil.Process(self.p.pid)
        except psutil.NoSuchProcess: return [],None
        found = [o, *o.children(recursive=True)]
        def kernel(o):
            try: return 'ipykernel_launcher' in ' '.join(o.cmdline())
            except psutil.Error: return False
        return found,next((x for x in found if kernel(x)), None)

    def kill(self, whom='job'):
        "SIGKILL the run as a node failure would, or one of its processes only; says where it was"
        found,kernel = self.family()
        if kernel:
            try: kernel.send_signal(signal.SIGUSR2); time.sleep(.03)
            except psutil.Error: pass
        for o in dict(job=found, kernel=[kernel] if kernel else found, launcher=found[:1])[whom]:
            try: o.kill()
            except psutil.Error: pass
        self.p.wait()

    def wait(self, timeout=400):
        "The exit code"
        try: return self.p.wait(timeout)
        except subprocess.TimeoutExpired: self.kill(); return 'hangs'

    @property
    def said(self):
        self.log.flush()
        return (self.folder/'said').read_text()
    @property
    def stack(self): return (self.folder/'stack').read_text() if (self.folder/'stack').exists() else ''
    def close(self): self.log.close(); shutil.rmtree(self.folder, ignore_errors=True)

# Functions on the stack, and what a run does while they are
DOING = dict(write_store='writing a store', pretrain='pretraining', base_model='data', finetune='model training', train_saes='SAE training', train_on='LM SAE training',
             _evaluate='evaluation', evaluate_activations='evaluation', results='evaluation', compare_arms='evaluation', perplexity='evaluation', choose_k='evaluation', at_work='evaluation', intervention_sweep='evaluation', reconstruction='evaluation', held_out='evaluation',
             collect='collecting activations', collect_tokens='collecting activations', embed='figures', savefig='figures', strongest_texts='figures', strongest='figures', load_task='data', TokenStream='data',
             tokenizer_of='data', load_model='reading models', saes='SAE training', models='model training')
WRITING = 'atomic','write_tensors','write_json','save_pretrained','save_coders','finish','log','_lock','fsync'

def where(stack):
    "What the run was doing, from the functions on the stack of its main thread"
    names = re.findall(r'in (\w+)$', (stack.split('Current thread')[-1] if 'Current thread' in stack else stack.split('most recent call first')[-1]), re.M)
    if not names: return 'starting',False
    doing = next((DOING[o] for o in names if DOING.get(o)), None) or ('imports' if 'exec_module' in names or '_find_and_load' in names else 'between' if 'run_cell' in names or 'run_code' in names else 'starting')
    return doing,any(o in WRITING for o in names)

def contents(out):
    "What is compared: every file of a run, but those with times in them"
    def digest(o): return hashlib.sha256(o.read_bytes()).hexdigest()[:16]
    return {o.relative_to(out).as_posix(): digest(o) for o in sorted(Path(out).rglob('*')) if o.is_file() and o.name != 'log.jsonl' and not (o.suffix == '.ipynb' and o.parent == Path(out))}

def difference(out, reference):
    found = contents(out)
    return sorted(f'{"missing" if o not in found else "left behind" if o not in reference else "differs"}: {o}' for o in found.keys() | reference if found.get(o) != reference.get(o))

_references = {}
def undisturbed(case, folder):
    "A run that nothing disturbs: its files, when each was written, and how often something was opened or renamed"
    if case in _references: return _references[case]
    out = Path(folder)/f'{case}-undisturbed'
    shutil.rmtree(out, ignore_errors=True)
    job = Job(CASES[case], out, FAULTS_COUNT=1)
    code = job.wait()
    if code: raise SystemExit(f'{case} fails undisturbed, with {code}:\n{job.said}')
    took,begun = time.monotonic() - job.begin,(out/'config.json').stat().st_mtime
    marks = sorted((o.stat().st_mtime - begun, o.relative_to(out).as_posix()) for o in out.rglob('*') if o.is_file())
    _references[case] = dict(files=contents(out), marks=marks, took=took, operations=(job.folder/'count').stat().st_size)
    job.close()
    return _references[case]

def go_on(case, out, reference, tries=3, **env):
    "The same command until it is done; how often, the last words, and what differs from the undisturbed run"
    for attempt in range(1, tries + 1):
        job = Job(CASES[case], out, **env)
        code,said = job.wait(),job.said
        job.close()
        if code == 0: break
    return dict(attempts=attempt, code=code, differs=difference(out, reference['files']), **(dict(said=said[-600:]) if code else {}))

def at_random(rng, job, reference):
    "Wait for a random moment of the work, just after a random file, or in the first seconds of the process; tells how long after which file it is"
    if rng.random() < .1:
        time.sleep(after := rng.uniform(0, .4*reference['took']))
        return f'{after:.2f} s after its start'
    marks = reference['marks']
    if rng.random() < .5: at = rng.uniform(0, marks[-1][0] + .3); i = max(k for k,o in enumerate(marks) if o[0] <= at or not k); after = max(0, at - marks[i][0]) # any time
    else: i,after = rng.randrange(len(marks)),rng.uniform(0, .05) # just after a file was written
    while not (job.out/marks[i][1]).exists() and job.p.poll() is None: time.sleep(.002)
    time.sleep(after)
    return f'{after:.2f} s after {marks[i][1]}'

def kept(out, end):
    "Seconds between the last time that anything was written which a restart uses, and the end"
    names = [o for o in Path(out).rglob('*') if o.is_file() and o.suffix in ('.safetensors', '.json') and not o.name.endswith('.tmp')]
    return max(0., end - max((o.stat().st_mtime for o in names), default=end))

def kills(folder, n=60, seed=0, cases=tuple(CASES)):
    "SIGKILL at random moments; every third at a file operation: before a file is opened or renamed, or just after"
    rng = random.Random(seed)
    for i in range(n) if isinstance(n, int) else n:
        case,whom = cases[i % len(cases)],('job', 'job', 'kernel', 'launcher')[i//len(cases) % 4]
        reference,out = undisturbed(case, folder),Path(folder)/f'kill-{i}'
        for again in range(5): # a moment that came after the end is drawn again
            shutil.rmtree(out, ignore_errors=True)
            if i % 3 == 2:
                at,when,whom = rng.randint(1, reference['operations']),rng.choice(('before', 'after')),('job', 'kernel')[whom == 'kernel']
                job,moment = Job(CASES[case], out, FAULTS_AT=at, FAULTS_WHEN=when, FAULTS_WHOM=whom),f'{when} file operation {at} of {reference["operations"]}'
                code = job.wait()
            else:
                job = Job(CASES[case], out)
                moment = at_random(rng, job, reference)
                early = job.p.poll() is None
                job.kill(whom)
                code = job.p.returncode if early else 0
            lost,(doing,writing),said = kept(out, (job.folder/'stack').stat().st_mtime if job.stack else time.time()),where(job.stack),job.said
            job.close()
            if code != 0: break
        if code == 0: continue
        rest = sum(o.name.endswith('.tmp') for o in out.rglob('*'))
        yield dict(fault='SIGKILL', case=case, whom=whom, moment=moment, doing=doing, writing=writing, kept_s=round(lost, 2), half_written=rest, **(dict(message=said.strip().splitlines()[-2:]) if whom == 'kernel' else {}),
                   **go_on(case, out, reference))
        shutil.rmtree(out, ignore_errors=True)

def stops(folder, n=10, seed=1, cases=tuple(CASES)):
    "SIGTERM and SIGINT at random moments: to the launcher, and to all processes as a scheduler does"
    rng = random.Random(seed)
    for i in range(2*n):
        case,name,whom = cases[i % len(cases)],('SIGTERM', 'SIGINT')[i % 2],('launcher', 'all')[i//2 % 2]
        reference,out = undisturbed(case, folder),Path(folder)/f'stop-{i}'
        for again in range(5):
            shutil.rmtree(out, ignore_errors=True)
            job = Job(CASES[case], out)
            moment = at_random(rng, job, reference)
            found,kernel = job.family()
            if kernel:
                try: kernel.send_signal(signal.SIGUSR2); time.sleep(.03)
                except psutil.Error: pass
            for o in found if whom == 'all' else found[:1]:
                try: o.send_signal(getattr(signal, name))
                except psutil.Error: pass
            begin = time.monotonic()
            code = job.wait()
            took,said,(doing,_) = time.monotonic() - begin,job.said,where(job.stack)
            job.close()
            if code != 0: break
        if code == 0: continue
        left = [o for o in found[1:] if o.is_running() and o.status() != psutil.STATUS_ZOMBIE]
        yield dict(fault=name, case=case, whom=whom, moment=moment, doing=doing, exit=code, right=code in (dict(SIGTERM=143, SIGINT=130)[name], -getattr(signal, name)), seconds=round(took, 2), processes_left=len(left),
                   told='run it again to resume' in said, **(dict(heard=said[-300:]) if 'run it again' not in said else {}), **go_on(case, out, reference))
        shutil.rmtree(out, ignore_errors=True)

# ------------------------------------------------------------------ disks
def mounted(path, size, how='rw'):
    "A file system of its own, in memory"
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size},{how}', 'tmpfs', str(path)], check=True)

def remount(path, how): subprocess.run(['mount', '-o', f'remount,{how}', str(path)], check=True)
def unmount(path): subprocess.run(['umount', '-l', str(path)], check=True)

def told(said):
    "The words in which a run says why it stopped"
    lines = said.strip().splitlines()
    at = next((i for i,o in enumerate(lines) if ' failed' in o or o.startswith('sae_ception: ')), max(0, len(lines) - 3))
    return ' '.join(' '.join(lines[at:at+3]).split())[:400]

def clean(said): return 'Traceback' not in said

def full(folder, n, seed, cases):
    "A disk that is full before a run is done; then there is room again"
    rng = random.Random(f'full {seed}')
    for i in range(n):
        case = cases[i % len(cases)]
        reference,disk = undisturbed(case, folder),Path(folder)/f'full-{i}'
        total = sum(o.stat().st_size for o in (Path(folder)/f'{case}-undisturbed').rglob('*') if o.is_file())
        size = round(rng.uniform(.05, .9)*total)
        mounted(disk, max(size, 65536))
        try:
            job = Job(CASES[case], disk/'run')
            code,said = job.wait(),job.said
            job.close()
            left = sum(o.name.endswith('.tmp') for o in disk.rglob('*'))
            remount(disk, 'size=2g')
            if code == 0: continue
            yield dict(fault='full disk', case=case, share=round(size/total, 2), exit=code, told=told(said), names=bool(re.search(r'No space left on device.*(make room|free|again)', ' '.join(said.split()))), clean=clean(said), half_written=left,
                       **go_on(case, disk/'run', reference))
        finally: unmount(disk)

def read_only(folder, n, seed, cases):
    "A directory that may not be written to: from the beginning, after a kill, and from a random moment on (for a person who is not root)"
    rng,nobody = random.Random(f'read-only {seed}'),65534
    for i in range(n):
        case,way = cases[i % len(cases)],('new', 'begun', 'meanwhile')[i % 3]
        reference,disk = undisturbed(case, folder),Path(folder)/f'read-only-{i}'
        mounted(disk, '2g')
        try:
            out = disk/'run'
            if way == 'new': remount(disk, 'ro')
            if way == 'begun':
                job = Job(CASES[case], out); at_random(rng, job, reference); job.kill(); job.close()
                remount(disk, 'ro')
            if way == 'meanwhile':
                home = Path(tempfile.mkdtemp(prefix='faults_')); disk.chmod(0o777); home.chmod(0o777); os.chown(home, nobody, nobody)
                job = Job(CASES[case], out, command=('setpriv', f'--reuid={nobody}', f'--regid={nobody}', '--clear-groups'), HOME=home, IPYTHONDIR=home/'ipython', MPLCONFIGDIR=home/'mpl')
                moment = at_random(rng, job, reference)
                for o in [out, *(o for o in out.rglob('*') if o.is_dir())]: o.chmod(0o555)
            else: job,moment = Job(CASES[case], out),way
            code,said = job.wait(),job.said
            job.close()
            if way == 'meanwhile':
                for o in [out, *(o for o in out.rglob('*') if o.is_dir())]: o.chmod(0o777)
                shutil.rmtree(home, ignore_errors=True)
            else: remount(disk, 'rw')
            if code == 0: continue
            yield dict(fault='read-only directory', case=case, way=way, moment=moment, exit=code, told=told(said), names=bool(re.search(r'(cannot write to|Permission denied|Read-only file system).*(choose|writable)', ' '.join(said.split()))), clean=clean(said),
                       **go_on(case, out, reference))
        finally: unmount(disk)

def flip(file, at):
    raw = bytearray(file.read_bytes()); raw[at] ^= 16
    file.write_bytes(raw)

def damaged(folder, n, seed, cases):
    "A checkpoint that is damaged while nobody is at work; then it is put back, or removed. And a finished stage that is damaged"
    rng = random.Random(f'damaged {seed}')
    for i in range(n):
        case,how = cases[i % len(cases)],('a bit of a number', 'a bit of the header', 'cut short', 'empty', "another run's", 'a finished stage')[i % 6]
        reference,out = undisturbed(case, folder),Path(folder)/f'damaged-{i}'
        for again in range(5):
            shutil.rmtree(out, ignore_errors=True)
            job = Job(CASES[case], out)
            saved = lambda: [o for o in out.rglob('*') if o.name.startswith(('checkpoint.safetensors', 'resume.safetensors', '.model.safetensors', '.sae.safetensors')) and not o.name.endswith('.tmp')]
            done = lambda: [o for o in out.rglob('*.safetensors') if (o.parent/'manifest.json').exists() and o not in saved()]
            while job.p.poll() is None and not (done() if how == 'a finished stage' else saved()): time.sleep(.002)
            time.sleep(rng.uniform(0, .3))
            job.kill(); job.close()
            found = done() if how == 'a finished stage' else saved()
            if found: break
        else: continue
        file = rng.choice(sorted(found))
        whole = file.read_bytes()
        if how in ('a bit of a number', 'a finished stage'): flip(file, len(whole) - 1 - rng.randrange(min(4000, len(whole)//2)))
        if how == 'a bit of the header': flip(file, rng.randrange(8, 200))
        if how == 'cut short': file.write_bytes(whole[:rng.randrange(1, len(whole))])
        if how == 'empty': file.write_bytes(b'')
        if how == "another run's":
            other = Job(CASES['sae' if case != 'sae' else 'baseline'] + ' seed=7', Path(folder)/'other')
            theirs = lambda: list((Path(folder)/'other').rglob('checkpoint.safetensors*'))
            while other.p.poll() is None and not theirs(): time.sleep(.002)
            other.kill(); other.close()
            file.write_bytes(theirs()[0].read_bytes())
            shutil.rmtree(Path(folder)/'other')
        row = dict(fault='damaged file', case=case, how=how, file=file.relative_to(out).as_posix())
        job = Job(CASES[case], out)
        code,said = job.wait(),job.said
        job.close()
        if how == 'a finished stage': yield dict(**row, exit=code, told=next((o for o in said.splitlines() if 'is not what was written' in o), '').replace(str(out), '')[-200:], names=file.name in said and 'computed again' in said, clean=clean(said), attempts=1, code=code, differs=difference(out, reference['files']))
        else:
            if remedy := i % 2: file.unlink()
            else: file.write_bytes(whole)
            yield dict(**row, exit=code, told=told(said).replace(str(out), ''), names=code == 1 and file.name.split('.')[0] in said and 'remove it' in said, clean=clean(said), remedy=('put back', 'removed')[remedy], **go_on(case, out, reference))
        shutil.rmtree(out, ignore_errors=True)

def disks(folder, n=8, seed=2, cases=('cycle', 'lm_sae', 'sae', 'pretrain', 'lm_store')):
    if os.getuid() == 0:
        yield from full(folder, n, seed, cases)
        yield from read_only(folder, n - n % 3 or 3, seed, cases)
    else: yield dict(fault='full disk', skipped='only root may mount file systems')
    yield from damaged(folder, 12*n//8, seed, cases[:4])

# ------------------------------------------------------------------ others
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long off(void) { const char *f = getenv("CLOCK_FILE"); return f && !access(f, F_OK) ? atol(getenv("CLOCK_JUMP")) : 0; }
int clock_gettime(clockid_t c, struct timespec *t) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int r = real(c, t);
  if (!r && (c == CLOCK_REALTIME || c == CLOCK_REALTIME_COARSE)) t->tv_sec += off();
  return r;
}
time_t time(time_t *t) { struct timespec s; clock_gettime(CLOCK_REALTIME, &s); if (t) *t = s.tv_sec; return s.tv_sec; }
int gettimeofday(struct timeval *t, void *z) { struct timespec s; clock_gettime(CLOCK_REALTIME, &s); t->tv_sec = s.tv_sec; t->tv_usec = s.tv_nsec/1000; return 0; }
"""

def clocks(folder, n, seed, cases):
    "The clock of a run jumps by 400 days at a random moment; half of these runs are killed after it, and go on at another date. The times of all files are changed as well"
    rng,shim = random.Random(f'clock {seed}'),Path(folder)/'clock.so'
    if not shutil.which('cc'): yield dict(fault='clock jump', skipped='no C compiler'); return
    subprocess.run(['cc', '-shared', '-fPIC', '-x', 'c', '-', '-o', str(shim), '-ldl'], input=CLOCK, text=True, check=True)
    for i in range(n):
        case,days,out,flag = cases[i % len(cases)],(400, -400)[i//2 % 2],Path(folder)/f'clock-{i}',Path(folder)/f'jump-{i}'
        reference = undisturbed(case, folder)
        env = dict(LD_PRELOAD=shim, CLOCK_FILE=flag, CLOCK_JUMP=days*86400)
        job = Job(CASES[case], out, **env)
        moment = at_random(rng, job, reference)
        flag.touch()
        if i % 2:
            time.sleep(rng.uniform(0, 2))
            job.kill()
            for o in out.rglob('*'): os.utime(o, (time.time() + rng.uniform(-1, 1)*3e8,)*2)
        code,said = job.wait(),job.said
        job.close()
        times = [json.loads(o)['time'] for o in (out/'log.jsonl').read_text().splitlines() if o.endswith('}')] if (out/'log.jsonl').exists() else []
        jumped = max([0, *(abs(o - time.time())/86400 for o in times)]) # as the run itself has noted it
        yield dict(fault='clock jump', case=case, days=days, killed=bool(i % 2), moment=moment, exit=code, jump_in_log_days=round(jumped), **(go_on(case, out, reference) if i % 2 else dict(attempts=0, code=code, differs=difference(out, reference['files']))))
        shutil.rmtree(out, ignore_errors=True)

TWICE = """
import sys,time
from sae_ception import run
if sys.argv[2] == 'unlocked': run._lock = lambda path: None
from sae_ception.cycle import CycleConfig,run_cycles
from sae_ception.data import load_task
from sae_ception.sae.coders import SAEConfig
from sae_ception.sae.training import SAETrainConfig
from sae_ception.training import TrainConfig
task = load_task('digits')
print('ready', flush=True); sys.stdin.readline()
run_cycles(task, CycleConfig(cycles=1, seeds=(0, 1), baseline=TrainConfig(epochs=6), tune=TrainConfig(epochs=3), sae=SAEConfig(64, k=6), sae_train=SAETrainConfig(epochs=10)), sys.argv[1])
"""

def together(folder, lock, apart):
    "Two processes of the API with one directory, the second a little later"
    out = Path(folder)/'twice'
    shutil.rmtree(out, ignore_errors=True)
    start = lambda out: subprocess.Popen([sys.executable, '-c', TWICE, str(out), lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, 'SAE_CEPTION_SAVE_EVERY': '0.01'})
    if 'twice' not in _references:
        p = start(alone := Path(folder)/'alone'); p.communicate('\n')
        _references['twice'] = contents(alone)
    both = [start(out) for _ in range(2)]
    for p in both: p.stdout.readline()
    for p,s in zip(both, (0, apart)): time.sleep(s); p.stdin.write('\n'); p.stdin.flush()
    said = [p.communicate()[1] for p in both]
    return dict(fault='two at once, API', lock=lock == 'locked', apart_s=apart, exits=[p.returncode for p in both], told=[o.strip().splitlines()[-1].replace(str(out), '')[:300] for o in said if o.strip()], differs=difference(out, _references['twice']))

def twice(folder, n, seed, cases):
    "Two runs in one directory at once: by the command, and by the API; without the lock too, to see what it is for"
    rng = random.Random(f'twice {seed}')
    for i in range(n):
        case,out,apart = cases[i % len(cases)],Path(folder)/f'twice-{i}',round(rng.uniform(0, 8), 2)
        reference = undisturbed(case, folder)
        one = Job(CASES[case], out); time.sleep(apart); two = Job(CASES[case], out)
        codes = [one.wait(), two.wait()]
        said = next((o.said for o,c in zip((one, two), codes) if c), '')
        yield dict(fault='two at once, command', case=case, apart_s=apart, exits=codes, told=told(said).replace(str(out), ''), names='in use by another process' in said or codes == [0, 0] and 'is finished' in two.said, differs=difference(out, reference['files']))
        one.close(); two.close(); shutil.rmtree(out, ignore_errors=True)
    for i in range(n): yield together(folder, 'locked', round(rng.uniform(0, .5), 2))
    for i in range(n): yield together(folder, 'unlocked', round(rng.uniform(0, .5), 2))

HUB = ('cycle dataset=sst2', 'cycle model=distilbert-base-uncased dataset=docstrings', 'baseline model=google/vit-base-patch16-224', 'lm_sae model_name=gpt2', 'lm_sae tokenizer_name=gpt2', 'lm_sae dataset_path=owner/name',
       'pretrain model_name=EleutherAI/pythia-70m', 'study dataset=ag_news')

def hub(folder):
    "A hub that does not answer, and nothing in the cache: what is said, after how long, and was anything computed"
    for words in HUB:
        out = Path(folder)/'hub'
        shutil.rmtree(out, ignore_errors=True)
        begin = time.monotonic()
        job = Job(words, out, HF_HUB_OFFLINE=None, HF_ENDPOINT='http://127.0.0.1:9', HF_HOME=Path(folder)/'empty', HF_DATASETS_CACHE=None, TRANSFORMERS_CACHE=None)
        code,said = job.wait(200),job.said
        wanted = words.split()[1].partition('=')[2]
        yield dict(fault='hub is down', command=words, exit=code, seconds=round(time.monotonic() - begin, 1), told=told(said).replace(str(out), ''), names=wanted in told(said), clean=clean(said),
                   computed=[o.relative_to(out).as_posix() for o in out.rglob('*.safetensors')])
        job.close()

def others(folder, n=4, seed=3, cases=('cycle', 'lm_sae', 'sae', 'lm_store')):
    yield from hub(folder)
    yield from twice(folder, n, seed, cases)
    yield from clocks(folder, n, seed, cases)

# ------------------------------------------------------------------ memory
class Meter:
    "Memory of this process, every so many steps; at the last one also after the C library has given back what is free"
    def __init__(self, every, last): self.every,self.last,self.n = every,last,0
    def note(self, **more): print(json.dumps(dict(step=self.n, mb=round(psutil.Process().memory_info().rss/2**20, 2), objects=sys.getallocatedblocks(), **more)), flush=True)
    def __call__(self, *a):
        self.n += 1
        if self.n % self.every == 0: self.note()
        if self.n in (self.every, self.last) and sys.platform == 'linux': ctypes.CDLL(None).malloc_trim(0); self.note(trimmed=True)

def grow_sae(folder, steps):
    "An SAE on rows of a language model as it runs"
    from sae_ception.huggingface import load_lm
    from sae_ception.pretraining import tokenizer_of
    from sae_ception.rows import LiveRows
    from sae_ception.sae.coders import SAEConfig
    from sae_ception.sae.training import Coder,SAETrainConfig,train_on
    from sae_ception.tokens import TokenStream
    tokenizer = tokenizer_of('docstrings', 300)
    model,meter = load_lm('gpt2:16x1', tokenizer, 0)[0],Meter(500, steps)
    class Rows(LiveRows):
        def batch(self, n, part=slice(None)): meter(); return super().batch(n, part)
    rows = Rows(model, TokenStream('docstrings', tokenizer, 32), ['layers.0.resid_post'], 4096, contexts=32)
    train_on(rows, [Coder('layers.0.resid_post', '', SAEConfig(width=64, k=4), SAETrainConfig(rows=steps*64, batch_size=64))], checkpoint=folder, device='cpu', log=Path(folder)/'log.jsonl', every=1000, held_out=1024, save_every=2.)

def grow_pretrain(folder, steps):
    "A language model in training"
    from sae_ception.huggingface import load_lm
    from sae_ception.pretraining import PretrainConfig,held_out_batches,pretrain,tokenizer_of
    from sae_ception.tokens import TokenStream
    tokenizer = tokenizer_of('docstrings', 300)
    model,meter = load_lm('gpt2:16x1', tokenizer, 0)[0],Meter(500, steps)
    stream = TokenStream('docstrings', tokenizer, 16, passes=0)
    following = stream.next
    stream.next = lambda n: (meter(), following(n))[1]
    pretrain(model, stream, PretrainConfig(tokens=steps*2*16, batch_size=2, evaluations=20, device='cpu'), held_out=held_out_batches(TokenStream('docstrings', tokenizer, 16), 512), checkpoint=Path(folder)/'checkpoint.safetensors')

def grow_finetune(folder, steps):
    "A classifier in training, with an auxiliary loss"
    from sae_ception import training
    from sae_ception.data import load_task
    from sae_ception.models import make_model
    from sae_ception.training import Auxiliary,TrainConfig,finetune
    task,meter = load_task('digits'),Meter(500, steps)
    per_epoch = -(-len(task.splits['train'])//64)
    step = training._step
    training._step = lambda *a, **k: (meter(), step(*a, **k))[1]
    finetune([make_model('mlp:32x16', task, 0)], task, TrainConfig(epochs=-(-steps//per_epoch), device='cpu'), [Auxiliary(.001, loss='l1')], None, [0], Path(folder)/'checkpoint.safetensors')

def grow_cycles(folder, steps):
    "Whole cycles in one process, one after the other"
    from sae_ception.cycle import CycleConfig,run_cycles
    from sae_ception.data import load_task
    from sae_ception.sae.coders import SAEConfig
    from sae_ception.sae.training import SAETrainConfig
    from sae_ception.training import TrainConfig
    task,meter = load_task('digits'),Meter(1, steps)
    for i in range(steps):
        run_cycles(task, CycleConfig(cycles=1, seeds=(i,), baseline=TrainConfig(epochs=2, device='cpu'), tune=TrainConfig(epochs=1, device='cpu'), sae=SAEConfig(32, k=6), sae_train=SAETrainConfig(epochs=3)), Path(folder)/str(i))
        meter()

GROW = dict(sae=(grow_sae, 20_000), pretrain=(grow_pretrain, 20_000), finetune=(grow_finetune, 20_000), cycles=(grow_cycles, 30))

def memory(folder, cases=tuple(GROW)):
    "Each in a process of its own"
    for case in cases:
        begin = time.monotonic()
        done = subprocess.run([sys.executable, __file__, 'grow', case, '--folder', str(Path(folder)/f'grow-{case}')], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'})
        if done.returncode: raise SystemExit(done.stderr[-3000:])
        rows = [json.loads(o) for o in done.stdout.splitlines() if o.startswith('{')]
        yield dict(what=GROW[case][0].__doc__, case=case, steps=GROW[case][1], seconds=round(time.monotonic() - begin), curve=[[o['step'], o['mb'], o['objects']] for o in rows if 'trimmed' not in o], trimmed=[o['mb'] for o in rows if 'trimmed' in o])

def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument('what', choices=['all', *KINDS, 'grow'], help='grow is for this script itself')
    a.add_argument('out', help='file of JSON lines to append to')
    a.add_argument('--n', type=int, help='how many, where there is a choice')
    a.add_argument('--seed', type=int, help='decides what is random')
    a.add_argument('--cases', help='some of ' + ','.join(CASES))
    a.add_argument('--folder', help='where to work; a temporary folder if absent')
    a = a.parse_args()
    if a.what == 'grow':
        Path(a.folder).mkdir(parents=True, exist_ok=True)
        grow,steps = GROW[a.out]
        return grow(a.folder, steps)
    from sae_ception.run import versions
    given = {k: v for k,v in dict(n=a.n, seed=a.seed, cases=a.cases and tuple(a.cases.split(','))).items() if v is not None}
    with tempfile.TemporaryDirectory() as d:
        folder = Path(a.folder or d)
        folder.mkdir(parents=True, exist_ok=True)
        for what in KINDS if a.what == 'all' else [a.what]:
            begin = time.process_time() + sum(os.times()[2:4])
            for row in KINDS[what](folder, **given):
                row = dict(kind=what, **row)
                print(json.dumps(row), flush=True)
                with open(a.out, 'a') as f: f.write(json.dumps(row) + '\n')
            cpu = time.process_time() + sum(os.times()[2:4]) - begin
            with open(a.out, 'a') as f: f.write(json.dumps(dict(kind='about', what=what, settings=given, core_seconds=round(cpu), versions=versions())) + '\n')

KINDS = dict(kills=kills, stops=stops, disks=disks, others=others, memory=memory)
if __name__ == '__main__': main()
