/*
 * What a bridge attachment costs the kernel, and nothing else: the messages of one ADD or DEL, in
 * two sends, without looking anything up.
 *
 *     floor ADD NETNS BRIDGE HOST-NAME ADDRESS GATEWAY
 *     floor DEL NETNS BRIDGE HOST-NAME ADDRESS GATEWAY
 *
 * ADD: a veth pair between NETNS (eth0) and BRIDGE, both ends up, the address with /16, a default
 * route. DEL: the pair goes. Prints the nanoseconds between the first request and the last answer.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[4096];
static size_t length;    /* of the messages in the buffer */
static struct nlmsghdr *message;
static int messages;

static void *grow(size_t size)
{
	void *place = buffer + length;

	memset(place, 0, NLMSG_ALIGN(size));
	length += NLMSG_ALIGN(size);
	message->nlmsg_len = buffer + length - (char *)message;
	return place;
}

static void begin(int type, int flags, const void *header, size_t size)
{
	message = (struct nlmsghdr *)(buffer + length);
	memset(message, 0, sizeof(*message));
	message->nlmsg_type = type;
	message->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	message->nlmsg_seq = ++messages;
	length += sizeof(*message);
	memcpy(grow(size), header, size);
}

static void attribute(int type, const void *data, size_t size)
{
	struct rtattr *found = grow(RTA_LENGTH(size));

	found->rta_type = type;
	found->rta_len = RTA_LENGTH(size);
	if (size)
		memcpy(RTA_DATA(found), data, size);
}

static struct rtattr *nest(int type)
{
	struct rtattr *found = (struct rtattr *)(buffer + length);

	attribute(type, NULL, 0);
	return found;
}

static void end(struct rtattr *nested)
{
	nested->rta_len = buffer + length - (char *)nested;
}

/* Send what is in the buffer, and wait until all of it is acknowledged. */
static void carry_out(int socket)
{
	char answers[16384];

	if (send(socket, buffer, length, 0) != (ssize_t)length)
		err(1, "send");
	while (messages > 0) {
		ssize_t size = recv(socket, answers, sizeof(answers), 0);
		struct nlmsghdr *answer = (struct nlmsghdr *)answers;

		if (size < 0)
			err(1, "recv");
		for (; NLMSG_OK(answer, size); answer = NLMSG_NEXT(answer, size)) {
			struct nlmsgerr *status = NLMSG_DATA(answer);

			if (answer->nlmsg_type != NLMSG_ERROR)
				continue;
			if (status->error) {
				errno = -status->error;
				err(1, "message %u", status->msg.nlmsg_seq);
			}
			messages--;
		}
	}
	length = 0;
}

static int route_socket(void)
{
	int found = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (found < 0)
		err(1, "socket");
	return found;
}

static void make_pair(const char *name, int bridge, int netns)
{
	struct ifinfomsg link = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	struct ifinfomsg down = {0}; /* it cannot go up before it has its peer */
	struct rtattr *info, *data, *peer;

	begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link, sizeof(link));
	attribute(IFLA_IFNAME, name, strlen(name) + 1);
	attribute(IFLA_MASTER, &bridge, sizeof(bridge));
	info = nest(IFLA_LINKINFO);
	attribute(IFLA_INFO_KIND, "veth", strlen("veth"));
	data = nest(IFLA_INFO_DATA);
	peer = nest(VETH_INFO_PEER);
	memcpy(grow(sizeof(down)), &down, sizeof(down));
	attribute(IFLA_IFNAME, "eth0", sizeof("eth0"));
	attribute(IFLA_NET_NS_FD, &netns, sizeof(netns));
	end(peer);
	end(data);
	end(info);
}

static void configure(int index, struct in_addr address, struct in_addr gateway)
{
	struct ifinfomsg link = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
	struct ifaddrmsg local = {.ifa_family = AF_INET, .ifa_prefixlen = 16, .ifa_index = index};
	struct rtmsg route = {
		.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT,
		.rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST,
	};

	begin(RTM_SETLINK, 0, &link, sizeof(link));
	begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &local, sizeof(local));
	attribute(IFA_LOCAL, &address, sizeof(address));
	attribute(IFA_ADDRESS, &address, sizeof(address));
	begin(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &route, sizeof(route));
	attribute(RTA_GATEWAY, &gateway, sizeof(gateway));
	attribute(RTA_OIF, &index, sizeof(index));
}

static long nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

int main(int argc, char **argv)
{
	struct in_addr address, gateway;
	int host, sandbox, netns, bridge;
	long start;

	if (argc != 7 || !inet_aton(argv[5], &address) || !inet_aton(argv[6], &gateway))
		errx(2, "usage: floor ADD|DEL NETNS BRIDGE HOST-NAME ADDRESS GATEWAY");
	start = nanoseconds();
	host = route_socket();
	if (!strcmp(argv[1], "DEL")) {
		struct ifinfomsg link = {0};

		begin(RTM_DELLINK, 0, &link, sizeof(link));
		attribute(IFLA_IFNAME, argv[4], strlen(argv[4]) + 1);
		carry_out(host);
	} else {
		bridge = if_nametoindex(argv[3]);
		netns = open(argv[2], O_RDONLY | O_CLOEXEC);
		if (!bridge || netns < 0)
			err(1, "%s, %s", argv[2], argv[3]);
		make_pair(argv[4], bridge, netns);
		carry_out(host);
		if (setns(netns, CLONE_NEWNET))
			err(1, "setns");
		sandbox = route_socket();
		configure(if_nametoindex("eth0"), address, gateway);
		carry_out(sandbox);
	}
	printf("%ld", nanoseconds() - start);
	return 0;
}
