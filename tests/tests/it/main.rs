//! The one integration binary: a file per promise. One binary, because linking the house once is enough.
//!
//! | file | promise |
//! |---|---|
//! | `api` | jobs wait, are shown, followed, refused; who goes away frees the machine |
//! | `artifacts` | what a job's artifacts are made of comes to its DUT, and the log says who read what |
//! | `attacks` | no header, path, port, packet or race gives a DUT what is another's |
//! | `bad_input` | what kills other servers is answered by ours, which serves on |
//! | `boots` | QEMU machines boot by every firmware, reboot, hang, are cancelled, are typed at |
//! | `buckets` | a job's buckets are filled, written by every client, read back, and nobody else's key or name leads there |
//! | `callers` | who may do what: tokens, roles, projects and TLS; each refusal is written down, and no secret |
//! | `console` | consoles are heard and kept whoever holds the machine, and typed on by its lease alone |
//! | `console_drivers` | other people's servers and boards are reached by every driver, and leased consoles by other people's programs |
//! | `demo` | one command boots a machine and ends with its verdict |
//! | `discover` | a machine that nobody declared is powered, boots, registers and runs jobs; and says nothing for others |
//! | `disks` | a job's disks are made, named, attached by its DUT alone, and gone with its power |
//! | `docs` | every command, example and link of the pages works |
//! | `executorctl` | CI-tron's own client, unmodified, runs jobs on our server |
//! | `fastboot` | loaders are given their boot image, or the job says which part of it they did not take |
//! | `faults` | outlets, consoles, DUTs, disk and clock that go wrong: the right cause, and the DUT free or a person called |
//! | `fetches` | what a job names by URL is fetched from nowhere of the farm, unless who hands it in may do everything |
//! | `firmware` | machines that are not ours boot by GRUB on arm64, and beside another DHCP server |
//! | `forgejo` | Forgejo's jobs of one step run here, and their states and logs go back, whatever goes wrong on the way |
//! | `found_pdus` | power units that tell of themselves are found, with the lines that a farm file needs for them |
//! | `fuzz` | what strangers send, changed a thousand times over, breaks no promise of any core |
//! | `github` | the composite action runs jobs with GitHub's id_token, and those of other repositories are refused |
//! | `gitlab` | GitLab's jobs run here, and their states, logs and files go back, whatever goes wrong on the way |
//! | `gitlab_executor` | gitlab-runner runs the scripts of its jobs on leased machines by a driver of ours, and their files come back |
//! | `gitlab_files` | what jobs of GitLab begin with and leave: shared folders, caches, submodules, large files; and what the server does not fetch for them |
//! | `gitlab_mock` | the same by a coordinator that others wrote |
//! | `gitlab_templates` | the pages' templates for `.gitlab-ci.yml` are what GitLab takes, by a checker of others |
//! | `hosts` | commands and files on hosts by SSH, by their tags, with their keys, and nothing is left of them |
//! | `http_clients` | curl reads whole, in part and resumed, over a bad link too, and is told what it may not |
//! | `id_tokens` | a forge's word on whose job it is: once, for that project, and nobody else's |
//! | `import` | a CI-tron farm is moved from its files: nothing is lost unsaid, nothing is overwritten unasked |
//! | `large_file` | ranges of a file of 5 GiB over HTTP, and no memory for it; all of it with a variable |
//! | `leases` | a person takes, uses, hands over and gives back a DUT; who waits knows why; what happened can be read |
//! | `licences` | what we build on may be given away, and there is one TLS stack |
//! | `limits` | what may be read once is read once, by any protocol, though the server is killed in between |
//! | `made_hosts` | a cloud with the EC2 API makes hosts when somebody asks, once, and none outlives its use |
//! | `messages` | DUTs of one job tell each other, over reboots, and never from job to job |
//! | `nbd_clients` | qemu, nbdcopy and nbdinfo write, read, map and share our disks |
//! | `nbd_root` | a DUT lives on a root file system of ours, and keeps or loses its writes as its job says |
//! | `nbd_strange` | strange NBD requests are answered, and a client that asks for much does not make us grow |
//! | `on_demand` | machines are made when jobs ask, make room for others, and go |
//! | `picked_up` | a machine that is not the server's own goes on without it, and so does its job |
//! | `power` | off-times, cycles, failures and reserved outlets: the same for every unit, kills included |
//! | `power_kernel` | USB hubs and GPIO lines of a real kernel do as they are told; all of it with a variable |
//! | `power_manual` | a job waits for the person who switches its outlet, and believes what he says |
//! | `power_network` | a lease switches its machine at the unit that the farm file names, over the network |
//! | `power_served` | pduclient and labgrid switch what a lease holds |
//! | `proxy` | a DUT reaches what job and farm allow, and nothing of the farm by any name, address or trick of either |
//! | `queue` | hundreds of jobs for fifty machines: in order, and none is forgotten |
//! | `registry` | container images come once from their registry, and from the farm afterwards; to nobody else, and only what they are |
//! | `reload` | a running farm takes a changed farm file, and no lease ends by it |
//! | `restart` | jobs, their places and their verdicts outlive the server, however it ends |
//! | `roles` | jobs over several DUTs start together, talk, and end together; gear is held by one job at a time |
//! | `shared_directory` | a directory goes to a job's machine and comes back, by each version of executorctl and by ours |
//! | `simulated` | jobs on simulated DUTs: every firmware, every fault, many at once |
//! | `ssh_guests` | hosts that are guests of the server's machine, and DUTs that do the steps of a job by SSH |
//! | `stalls` | a machine that stops in its boot is noticed with a mute console, and what it had fetched is told |
//! | `stores` | objects of a store elsewhere are read, ended jobs are copied there, and what it refuses is told and tried again |
//! | `tftp_clients` | curl, tftp-hpa, atftp and busybox read every kind of file over TFTP, over a bad link too |
//! | `tidy` | the house rules that a machine can see |
//! | `tls` | files and disks over TLS, and at ports of a job's own, for its DUT alone |
//! | `training` | machines train before they take jobs, are checked, retired, and quarantined when they fail |
//!
//! `farms` has the farms that they share, `loopback` the gateway in this process.

// Clippy takes only functions marked #[test] for tests; what they share may panic as well.
#![allow(clippy::unwrap_used)]

mod api;
mod artifacts;
mod attacks;
mod bad_input;
mod boots;
mod buckets;
mod callers;
mod console;
mod console_drivers;
mod demo;
mod discover;
mod disks;
mod docs;
mod executorctl;
mod farms;
mod fastboot;
mod faults;
mod fetches;
mod firmware;
mod forgejo;
mod found_pdus;
mod fuzz;
mod github;
mod gitlab;
mod gitlab_executor;
mod gitlab_files;
mod gitlab_mock;
mod gitlab_templates;
mod hosts;
mod http_clients;
mod id_tokens;
mod import;
mod large_file;
mod leases;
mod licences;
mod limits;
mod loopback;
mod made_hosts;
mod messages;
mod nbd_clients;
mod nbd_root;
mod nbd_strange;
mod on_demand;
mod picked_up;
mod power;
mod power_kernel;
mod power_manual;
mod power_network;
mod power_served;
mod proxy;
mod queue;
mod registry;
mod reload;
mod restart;
mod roles;
mod shared_directory;
mod simulated;
mod ssh_guests;
mod stalls;
mod stores;
mod tftp_clients;
mod tidy;
mod tls;
mod training;
