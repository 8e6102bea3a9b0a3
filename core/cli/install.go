package cli

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/remote"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	hivePort     = "7835"
	installLimit = 45 * time.Minute // of the whole command
	hiveAnswers  = 20 * time.Second // until a hive that was started is reached from here
	queenListens = 20 * time.Second // until the queen lists it as alive: four polls of one that it was told of
)

// reach is how a command gets to another machine.
type reach struct {
	port   int
	config string
}

func (r *reach) flags(c *cobra.Command) {
	c.Flags().IntVarP(&r.port, "port", "p", 0, "`port` of the ssh server (default: as ssh decides)")
	c.Flags().StringVar(&r.config, "ssh-config", "", "ssh configuration `file` instead of your own")
}

// dial connects. At a terminal ssh may ask for a password, or about a host key.
func (a *app) dial(ctx context.Context, s *story, host string, r reach) (*remote.Conn, error) {
	if r.port < 0 || r.port > 65535 {
		return nil, fault.New(fault.Invalid, "bad_port", "%d is not a port; a number from 1 to 65535 is needed.", r.port)
	}
	s.step("ssh    ")
	s.narrate(contract.Narration{Action: "connect", Message: "connecting to " + host})
	defer s.clear()
	o := remote.Options{Host: host, Port: r.port, Config: r.config}
	if isTerminal(a.in) && isTerminal(a.err) {
		o.Ask = s.clear
	}
	return remote.Dial(ctx, o)
}

// hiveInstall is what the user says about an installation.
type hiveInstall struct {
	reach
	remote.Places
	binary    string
	listen    string
	gossip    string
	advertise string
	insecure  bool
	dry       bool
}

func (a *app) hiveInstallCommand() *cobra.Command {
	var o hiveInstall
	c := &cobra.Command{Use: "install HOST", Short: "Put a hive on another machine through ssh, or bring one up to date", Args: argCount(1, 1, "HOST")}
	c.Long = c.Short + `.

Run it on the queen's machine. HOST is what ssh takes: user@host, host, or a name of your ssh configuration; your keys and your
known hosts are used. The program is copied and verified, with a configuration, this cluster's keys and a systemd unit; the hive is
started, and the command waits until the queen sees it. What fails is undone. The same command again repairs or upgrades; running workers
go on in any case.

Where the gossip of this machine's agent can be reached from others (gossip.bind, gossip.key), the hive joins it, and so is known to all
queens. Else this queen alone asks it: it is added to queen.hives, and the running agent reads its configuration again.

Until there are certificates, agents of several machines talk in the clear and are told apart by the cluster key alone; so a hive that
other machines can reach is only installed with --insecure-i-know, for networks that you trust.`
	o.reach.flags(c)
	f := c.Flags()
	f.StringVar(&o.binary, "binary", "", "the program for HOST's platform, a `file` (default: this program, or apiary-OS-ARCH beside it)")
	f.StringVar(&o.BinDir, "bin-dir", "", "`folder` for the program there (default: ~/.local/bin; for root /usr/local/bin)")
	f.StringVar(&o.DataDir, "data-dir", "", "data `folder` there (default: ~/.local/share/apiary; for root /var/lib/apiary)")
	f.StringVar(&o.listen, "listen", "", "where the hive listens, `host:port` (default: the address that ssh reached, port "+hivePort+")")
	f.StringVar(&o.gossip, "gossip", "", "where the hive's gossip listens, `host:port` (default: the host of --listen, port "+strconv.Itoa(contract.GossipPort)+")")
	f.StringVar(&o.advertise, "advertise", "", "`host` at which this machine reaches the hive (default: the address that ssh reached)")
	f.BoolVar(&o.insecure, "insecure-i-know", false, "let the hive listen where other machines can connect, although there are no certificates")
	f.BoolVar(&o.dry, "dry-run", false, "look at the machine and say what would be done")
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		ctx, cancel := context.WithTimeout(ctx, installLimit)
		defer cancel()
		return a.installHive(ctx, args[0], o)
	})
	return c
}

// installView is what `hive install` did, for programs.
type installView struct {
	Host      string   `json:"host"`
	HiveID    string   `json:"hive_id,omitempty"`
	Address   string   `json:"address"`
	Gossip    string   `json:"gossip,omitempty"` // where the hive's gossip listens; absent: this queen asks the hive
	Program   string   `json:"program,omitempty"`
	Config    string   `json:"config,omitempty"`
	Restarted bool     `json:"restarted"`
	Listed    bool     `json:"listed"` // the queen hears the hive
	Steps     []string `json:"steps,omitempty"`
	Notes     []string `json:"notes"`
}

func (a *app) installHive(ctx context.Context, host string, o hiveInstall) error {
	if err := remote.CheckHost(host); err != nil {
		return err
	}
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	key, err := loadKey(cfg.Home, secret.ClusterKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Conflict, "no_cluster_key", "The data folder %s has no cluster key, which a hive needs to belong to a queen; start the queen's agent here first, with `apiary agent` or `apiary run`.", cfg.Home)
	}
	if err != nil {
		return err
	}
	s := a.story(ctx)
	defer s.end()
	c, err := a.dial(ctx, s, host, o.reach)
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := c.Look(ctx, o.Places)
	if err != nil {
		return err
	}
	s.done("%s · %s · as %s", m.Name, m.Platform, m.User)
	address, listen, err := o.addresses(m)
	if err != nil {
		return err
	}
	if err := checkQueen(cfg, address); err != nil {
		return err
	}
	program, err := programFor(m, o.binary)
	if err != nil {
		return err
	}
	others, err := a.company(ctx, cfg, key)
	defer others.close()
	if err != nil {
		return err
	}
	gossip, err := o.gossipAt(listen, others)
	if err != nil {
		return err
	}
	plan := remote.Plan{Program: program, Version: a.version, Config: hiveConfig(m.Layout.Data, listen, address), Key: key, Insecure: o.insecure, Say: s.narrate}
	view := installView{Host: host, Address: address, Gossip: gossip, Notes: []string{}}
	if gossip != "" {
		plan.Config += gossipBlock(gossip, m.Layout.GossipKeyPath(), others)
		plan.GossipKey = others.key
	}
	if m.Missing != "" {
		view.Notes = append(view.Notes, m.Missing)
	}
	if o.dry {
		view.Steps = remote.Steps(m, plan)
		return a.dryRun(view)
	}
	var run int64 // of the hive that was started
	plan.Answers = func(ctx context.Context, done remote.Installed) error {
		var err error
		run, err = reachHive(ctx, done.Agent, key)
		if err != nil || gossip == "" || done.Config == "kept" { // what somebody has changed may be without gossip
			return err
		}
		return others.heard(ctx, done.NodeID, run)
	}
	s.step("hive   ")
	done, err := c.Install(ctx, m, plan)
	if err != nil {
		return err
	}
	view.HiveID, view.Program, view.Config, view.Restarted = done.NodeID, done.Program, done.Config, done.Restarted
	view.Notes = append(view.Notes, done.Notes...)
	s.done("%s", installedLine(m, done, a.version))
	s.step("queen  ")
	if gossip == "" {
		view.Notes = append(view.Notes, a.configureHive(ctx, cfg, address, others)...)
	}
	held := false
	if others.live != nil {
		if view.Listed, held, err = others.listed(ctx, s, done.NodeID, run); err != nil {
			return err
		}
	}
	switch {
	case held:
		s.done("hears the hive")
		view.Notes = append(view.Notes, "The hive was away several times within a minute, so it gets no new workers for another one.")
	case view.Listed:
		s.done("lists the hive as alive")
	case others.live == nil && gossip != "":
		view.Notes = append(view.Notes, "The agent here does not run; its queen knows the hive soon after it has started.")
	case others.live != nil:
		view.Notes = append(view.Notes, "The queen does not list the hive yet; `apiary hive list` shows when it does.")
	}
	if ip, err := netip.ParseAddr(hostOf(address)); len(others.join) == 0 && (err != nil || !ip.IsLoopback()) {
		view.Notes = append(view.Notes, "The gossip of this agent is on loopback, so no other queen can know the hive: for several queens set gossip.bind to an address of this machine and gossip.key (`apiary keygen` makes one), start the agent again, and give this command once more.")
	}
	s.end()
	if a.json {
		return a.printJSON(view)
	}
	return a.tellNotes(view.Notes)
}

func (a *app) tellNotes(notes []string) error {
	for _, n := range notes {
		if _, err := fmt.Fprintln(a.err, plain(printableLines(n), isTerminal(a.err))); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) dryRun(view installView) error {
	if a.json {
		return a.printJSON(view)
	}
	for _, step := range view.Steps {
		if _, err := fmt.Fprintln(a.out, "- "+printableLines(step)); err != nil {
			return err
		}
	}
	return a.tellNotes(append(view.Notes, "Nothing was changed on "+view.Host+"."))
}

func installedLine(m remote.Machine, done remote.Installed, version string) string {
	words := "apiary " + version + " installed and started"
	if m.Existing != nil {
		words = "was up to date"
		switch {
		case done.Program == "replaced":
			words = "upgraded to " + version + " and restarted, its workers went on"
		case done.Restarted:
			words = "repaired and started"
		}
	}
	return fmt.Sprintf("%s · %s", words, done.URL)
}

// addresses decides where the hive is reached and where it listens, and refuses what is open to others unless the user knows.
func (o hiveInstall) addresses(m remote.Machine) (address, listen string, err error) {
	host := m.Address
	if o.advertise != "" {
		host = o.advertise
	}
	if host != "" && !plainHost(host) {
		return "", "", fault.New(fault.Invalid, "bad_address", "%q is neither an address nor the name of a machine; correct --advertise.", host)
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && (ip.Zone() != "" || ip.IsUnspecified()) {
		return "", "", fault.New(fault.Invalid, "no_address", "It is not known at which address %s can be reached by other machines; say it with --advertise.", m.Host)
	}
	listen = o.listen
	if listen == "" {
		at := m.Address
		if at == "" {
			at = "0.0.0.0"
		}
		listen = net.JoinHostPort(at, hivePort)
	}
	at, port, err := net.SplitHostPort(listen)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || !plainHost(at) {
		return "", "", fault.New(fault.Invalid, "bad_address", "%q is not where a hive can listen; write host:port, for example 10.0.0.7:%s.", listen, hivePort)
	}
	if err := httpd.CheckBind(listen, o.insecure, "hive.listen"); err != nil {
		return "", "", fault.New(fault.Invalid, "unsafe_bind",
			"The hive on %s would listen at %s, where other machines reach it, and there are no certificates yet: what queen and workers say to each other can be read and changed on the way. In a network that you trust, say --insecure-i-know.", m.Host, listen)
	}
	u := url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}
	return u.String(), listen, nil
}

// plainHost reports whether s is an address or a name of letters, digits, dots and hyphens.
func plainHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return s != "" && !strings.HasPrefix(s, "-") && strings.IndexFunc(s, func(r rune) bool {
		return r != '.' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) < 0
}

// checkQueen refuses a hive on another machine while its workers could not reach the queen.
func checkQueen(cfg *config.Config, address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return fault.New(fault.Invalid, "bad_address", "%q is no address of a hive.", address)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && ip.IsLoopback() {
		return nil
	}
	queen := "http://" + cfg.Queen.Listen
	if r, err := agent.ReadRunFile(cfg.Home); err == nil && r.Queen != "" {
		queen = r.Queen
	}
	if !(target{base: queen}).local() {
		return nil
	}
	return fault.New(fault.Conflict, "queen_on_loopback",
		"The queen here is at %s, where the workers of other machines cannot reach it; set agent.advertise and queen.listen in the configuration to an address of this machine, start its agent with --insecure-i-know, and try again.", queen)
}

// programFor finds the executable for a machine's platform.
func programFor(m remote.Machine, given string) ([]byte, error) {
	own, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this executable: %w", err)
	}
	path := own
	switch {
	case given != "":
		path = given
	case m.Platform != runtime.GOOS+"-"+runtime.GOARCH:
		path = filepath.Join(filepath.Dir(own), "apiary-"+m.Platform)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if given != "" {
			return nil, fault.New(fault.NotFound, "file_not_found", "There is no file %s; correct --binary.", given)
		}
		return nil, fault.New(fault.NotFound, "no_program",
			"The machine %s is %s and this program is for %s-%s; `make bin/apiary-%s` builds the other one where it is looked for (%s), or name one with --binary.",
			m.Host, m.Platform, runtime.GOOS, runtime.GOARCH, m.Platform, path)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "file_unreadable", "The program %s cannot be read: %w.", path, err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fault.New(fault.Invalid, "wrong_arch", "%s is not a program for Linux; `make bin/apiary-%s` builds one.", path, m.Platform)
	}
	if want := map[string]elf.Machine{"linux-amd64": elf.EM_X86_64, "linux-arm64": elf.EM_AARCH64}[m.Platform]; f.Machine != want {
		return nil, fault.New(fault.Invalid, "wrong_arch", "%s is for the processor %s and %s is %s; `make bin/apiary-%s` builds one for it.", path, f.Machine, m.Host, m.Platform, m.Platform)
	}
	return b, nil
}

// hiveConfig is the configuration of a hive that is installed. Its texts have been checked: nothing in them needs escaping.
func hiveConfig(data, listen, address string) string {
	return fmt.Sprintf(`# Written by `+"`apiary hive install`"+`. Change it as you like: from then on it is left as it is.

agent {
  roles     = ["hive"]
  data_dir  = %q
  advertise = %q
}

hive {
  listen = %q
}
`, data, hostOf(address), listen)
}

// configFile is the configuration file in use, or where one will be.
func configFile(cfg *config.Config) string {
	if cfg.Path != "" {
		return cfg.Path
	}
	return filepath.Join(cfg.Home, "config.hcl")
}

// reachHive waits until a hive answers from here, with the cluster's key, and says which run of it that is.
func reachHive(ctx context.Context, there remote.Agent, key secret.Secret) (run int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, hiveAnswers)
	defer cancel()
	c := client.New(client.Options{Base: there.URL, Token: secret.ForHive(key, there.NodeID), Timeout: 5 * time.Second})
	defer c.Close()
	for {
		var beat contract.HiveBeat
		err := c.GetJSON(ctx, "/v1/hive", &beat)
		switch {
		case err == nil && beat.ID == there.NodeID:
			return beat.Incarnation, nil
		case err == nil:
			return 0, fault.New(fault.Conflict, "other_hive", "Another hive than the one that was installed answers at %s; choose another port with --listen.", there.URL)
		case fault.KindOf(err) == fault.Denied:
			return 0, fault.New(fault.Denied, "other_key", "What answers at %s does not take this cluster's key; is another agent running there?", there.URL)
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return 0, ctx.Err()
			}
			return 0, fault.New(fault.Unavailable, "hive_unreachable",
				"The hive runs but does not answer at %s from here; let its port and its workers' (7855-7999) through the firewall, or say with --advertise how it is reached. (%s)", there.URL, strings.TrimSuffix(fault.As(err).Message, "."))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// configureHive adds a hive to queen.hives and has the queen take that over. It returns what the user should know.
func (a *app) configureHive(ctx context.Context, cfg *config.Config, address string, others company) []string {
	file := configFile(cfg)
	added, err := inTurn(ctx, cfg.Home, func() (bool, error) { return config.PutHive(file, address) })
	if err != nil {
		return []string{fmt.Sprintf("The hive runs, but the queen does not know it yet: add %q to queen.hives. (%s)", address, strings.TrimSuffix(fault.As(err).Message, "."))}
	}
	var notes []string
	if added {
		notes = append(notes, fmt.Sprintf("%s was added to queen.hives of %s.", address, file))
	}
	if problem := others.reread(ctx); problem != "" {
		notes = append(notes, problem)
	}
	return notes
}

func hostOf(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// inTurn changes the configuration while no other command does.
func inTurn(ctx context.Context, home string, change func() (bool, error)) (bool, error) {
	done, err := config.TakeTurn(ctx, home)
	if err != nil {
		return false, err
	}
	defer done()
	return change()
}
