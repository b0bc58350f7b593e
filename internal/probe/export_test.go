package probe

// Detach detaches every hook, so that the kernel runs none of the programs, as for
// what happens while it keeps them from running. Reattach attaches them.
func (p *Probe) Detach() {
	for _, l := range p.links {
		l.Close()
	}
	p.links = nil
}

func (p *Probe) Reattach() (err error) {
	p.links, err = p.hooks.attach(&p.objs.bpfPrograms)
	return err
}
