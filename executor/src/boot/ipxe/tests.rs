//! Plans as text: what is published and what DHCP says, written out.

use super::*;
use job_schema::job::Job;
use job_schema::template::Rendered;

const PLACE: Place = Place { address: std::net::Ipv4Addr::new(10, 77, 0, 1), http_port: 80 };

fn plan(start: &str) -> BootPlan {
    let text = format!("version: 1\ntarget: {{tags: []}}\nconsole_patterns: {{}}\ndeployment: {{start: {start}}}\n");
    let job = Job::parse(&Rendered::plain("job.yml", text)).unwrap_or_else(|problems| panic!("{problems}"));
    let images = tempfile::tempdir().unwrap();
    for file in ["undionly.kpxe", "snponly.efi"] {
        std::fs::write(images.path().join(file), "image").unwrap();
    }
    Ipxe::of(images.path())
        .plan(&job.start, &Dut { place: PLACE, mac: gateway::dhcp::Mac([0x52, 0x54, 0, 0x77, 0, 1]) })
}

fn script_of(plan: &BootPlan) -> String {
    let text = |planned: &Planned| match &planned.source {
        Source::Text(text) => Some(text.clone()),
        Source::Wrapped { .. }
        | Source::Android(_)
        | Source::Firmware(_)
        | Source::Artifacts(_)
        | Source::Archives(_) => None,
    };
    plan.artifacts.iter().find_map(text).unwrap()
}

fn names(plan: &BootPlan) -> Vec<String> {
    plan.artifacts.iter().map(|planned| format!("{} {:?}", planned.protocol, planned.name)).collect()
}

#[test]
fn kernel_and_initramfs_make_a_script_for_bios_and_uefi() {
    let plan =
        plan("{kernel: {url: 'http://host/k', cmdline: [console=ttyS0, quiet]}, initramfs: {url: 'http://host/i'}}");
    assert_eq!(
        script_of(&plan),
        "#!ipxe\n\
         iseq ${platform} efi && goto efi ||\n\
         kernel --name kernel http://10.77.0.1/_/job/kernel console=ttyS0 quiet\n\
         goto initramfs\n\
         :efi\n\
         kernel --name kernel http://10.77.0.1/_/job/kernel initrd=initramfs.0 console=ttyS0 quiet\n\
         :initramfs\n\
         initrd --name initramfs.0 http://10.77.0.1/_/job/initramfs/0\n\
         boot\n"
    );
}

#[test]
fn every_part_of_an_initramfs_is_an_image_of_its_own() {
    let plan = plan(
        "{kernel: {url: 'http://host/k', cmdline: a}, initramfs: [{url: 'http://host/1'}, {url: 'http://host/2'}]}",
    );
    assert_eq!(
        script_of(&plan),
        "#!ipxe\n\
         iseq ${platform} efi && goto efi ||\n\
         kernel --name kernel http://10.77.0.1/_/job/kernel a\n\
         goto initramfs\n\
         :efi\n\
         kernel --name kernel http://10.77.0.1/_/job/kernel initrd=initramfs.0 initrd=initramfs.1 a\n\
         :initramfs\n\
         initrd --name initramfs.0 http://10.77.0.1/_/job/initramfs/0\n\
         initrd --name initramfs.1 http://10.77.0.1/_/job/initramfs/1\n\
         boot\n"
    );
}

#[test]
fn a_kernel_alone_is_booted_alone() {
    let plan = plan("{kernel: {url: 'http://host/k', cmdline: end=off}}");
    assert_eq!(script_of(&plan), "#!ipxe\nkernel --name kernel http://10.77.0.1/_/job/kernel end=off\nboot\n");
}

#[test]
fn a_command_line_that_ipxe_would_read_otherwise_goes_through_a_setting() {
    let plan = plan("{kernel: {url: 'http://host/k', cmdline: 'a; b'}}");
    assert_eq!(
        script_of(&plan),
        "#!ipxe\nset cmdline:hexraw 613b2062\nkernel --name kernel http://10.77.0.1/_/job/kernel ${cmdline:string}\nboot\n"
    );
}

#[test]
fn every_artifact_has_its_name() {
    let plan = plan(
        "{kernel: {url: 'http://host/k', cmdline: a}, initramfs: [{url: 'http://host/1'}, {url: 'http://host/2'}], \
         storage: {http: [{path: /h, data: x}], tftp: [{path: /t, data: y}]}}",
    );
    assert_eq!(
        names(&plan),
        [
            "HTTP /h",
            "TFTP /t",
            "TFTP /undionly.kpxe",
            "TFTP /snponly.efi",
            "HTTP /_/boot/snponly.efi",
            "HTTP /_/boot/boot.ipxe",
            "HTTP /_/job/kernel",
            "HTTP /_/job/initramfs",
            "HTTP /_/job/initramfs/0",
            "HTTP /_/job/initramfs/1",
        ]
    );
}

#[test]
fn dhcp_sends_ipxe_to_the_script_and_other_firmware_to_an_installed_image() {
    let plan = plan("{kernel: {url: 'http://host/k', cmdline: a}}");
    let rules: Vec<_> =
        plan.dhcp.rules.iter().map(|rule| (rule.bootfile.as_str(), rule.vendor_class_reply.as_deref())).collect();
    assert_eq!(
        rules,
        [
            ("http://10.77.0.1/_/boot/boot.ipxe", None),
            ("undionly.kpxe", None),
            ("snponly.efi", None),
            ("http://10.77.0.1/_/boot/snponly.efi", Some("HTTPClient")),
        ]
    );
}

#[test]
fn without_a_kernel_the_firmware_is_told_nothing_to_boot() {
    let plan = plan("{storage: {http: {path: /h, data: x}}}");
    assert_eq!(names(&plan), ["HTTP /h"]);
    assert!(plan.dhcp.rules.is_empty());
}
